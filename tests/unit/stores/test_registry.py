from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.stores.registry import open_store
from codegen_mcp.stores.s3_config import S3Config, parse_s3_url

KEYS = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "very-secret"}


def test_every_kind_of_address_names_a_store(tmp_path: Path) -> None:
    stores = {
        str(tmp_path): "local",
        (tmp_path / "with space").as_uri(): "local",
        "memory:": "memory",
        "s3://bucket/some/prefix": "s3",
    }
    for address, name in stores.items():
        assert open_store(address, environ=KEYS).name == name
    store = open_store((tmp_path / "with space").as_uri())
    assert store.url("a/b") == (tmp_path / "with space/a/b").as_uri()
    assert open_store("s3://bucket/p", environ=KEYS).url("a") == "s3://bucket/p/a"
    assert open_store("s3://bucket", environ=KEYS).url("a") == "s3://bucket/a"


@pytest.mark.parametrize(
    "address",
    [
        *("", "relative", "./relative", "memory", "gs://bucket", "file://host/path", "\0"),
        *("file:relative", "s3://", "s3://x", "s3://Bucket", "s3://bucket/a//b"),
        *("s3://bucket/../b", "s3://bucket?endpoint=x", "s3://key:secret@bucket/prefix"),
    ],
)
def test_any_other_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest):
        open_store(address, environ=KEYS)


@pytest.mark.parametrize("missing", sorted(KEYS))
def test_missing_credentials_are_named(missing: str) -> None:
    environ = {name: value for name, value in KEYS.items() if name != missing}
    with pytest.raises(InvalidRequest, match=missing):
        open_store("s3://bucket", environ=environ)


def test_an_endpoint_without_tls_needs_consent() -> None:
    environ = {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9000/"}
    with pytest.raises(InvalidRequest, match="AWS_ALLOW_HTTP"):
        open_store("s3://bucket", environ=environ)
    config = parse_s3_url("s3://bucket", {**environ, "AWS_ALLOW_HTTP": "true"})
    assert config.base_url == "http://127.0.0.1:9000"


def test_the_environment_is_read_as_aws_names_it() -> None:
    config = parse_s3_url(
        "s3://bucket/a/b/",
        {**KEYS, "AWS_SESSION_TOKEN": "token", "AWS_DEFAULT_REGION": "eu-west-1"},
    )
    assert config == S3Config(
        bucket="bucket",
        prefix="a/b",
        region="eu-west-1",
        access_key_id="AKIA",
        secret_access_key="very-secret",
        session_token="token",
    )
    assert config.base_url == "https://s3.eu-west-1.amazonaws.com"


def test_no_secret_is_shown() -> None:
    config = parse_s3_url("s3://bucket", {**KEYS, "AWS_SESSION_TOKEN": "other-secret"})
    assert "secret" not in repr(config).replace("secret_access_key", "")
    with pytest.raises(InvalidRequest) as refused:
        open_store("s3://bucket?secret_access_key=very-secret", environ=KEYS)
    assert "very-secret" not in refused.value.message


def test_obstore_is_imported_only_for_s3_and_its_absence_is_explained() -> None:
    program = """
import sys
sys.modules["obstore"] = None
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.stores.registry import open_store
assert open_store("memory:").name == "memory"
try:
    open_store("s3://bucket/prefix", environ={})
except InvalidRequest as error:
    print(error.message)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    ).stdout
    assert "install codegen-mcp[s3]" in said
