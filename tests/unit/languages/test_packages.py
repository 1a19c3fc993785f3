from __future__ import annotations

from pathlib import Path

import pytest

from codegen_mcp.core.errors import Forbidden, InvalidRequest
from codegen_mcp.languages.python.packages import Index, PackageConfig, choose_index

SECRET = "https://robot:hunter2@Packages.example:8443/simple/"


def test_an_index_is_read_with_its_origin_and_without_its_secret() -> None:
    index = Index.parse(SECRET)

    assert index.public_url == "https://packages.example:8443/simple"
    assert index.origin == ("packages.example", 8443)
    assert index.page("six") == "https://packages.example:8443/simple/six/"
    assert index.headers == {"Authorization": "Basic cm9ib3Q6aHVudGVyMg=="}


@pytest.mark.parametrize("url", ["", "ftp://x/simple", "https://", "/simple", "http://x:y/"])
def test_what_is_no_index_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        Index.parse(url)


def test_secrets_are_taken_out_of_words() -> None:
    words = f"error: {SECRET} said no to hunter2"

    shown = Index.parse(SECRET).hide_secrets(words)

    assert "hunter2" not in shown
    assert "robot:" not in shown


def test_another_set_of_credentials_is_the_same_store() -> None:
    other = Index.parse("https://packages.example:8443/simple")

    assert other.id == Index.parse(SECRET).id
    assert other.headers == {}


def test_a_request_may_name_a_configured_index_with_or_without_the_final_slash() -> None:
    indexes = (Index.parse("https://one.example/simple"), Index.parse(SECRET))

    assert choose_index(indexes, "") is indexes[0]
    assert choose_index(indexes, "https://packages.example:8443/simple") is indexes[1]
    assert choose_index(indexes, "https://ONE.example:443/simple/") is indexes[0]


@pytest.mark.parametrize(
    "url",
    [
        "https://one.example/other",
        "http://one.example/simple",
        "https://one.example.evil.example/simple",
        "https://evil.example/simple",
        "--help",
    ],
)
def test_any_other_index_is_forbidden_and_the_allowed_ones_are_named(url: str) -> None:
    indexes = (Index.parse("https://one.example/simple"),)

    with pytest.raises(Forbidden) as caught:
        choose_index(indexes, url)

    assert repr(url) in caught.value.message
    assert "https://one.example/simple" in caught.value.message
    assert caught.value.reason == "INDEX_NOT_ALLOWED"


def test_settings_are_checked_when_they_are_made() -> None:
    with pytest.raises(InvalidRequest, match="ttl_s"):
        PackageConfig.below(Path("/state"), ttl_s=0)
    with pytest.raises(InvalidRequest, match="ftp"):
        PackageConfig.below(Path("/state"), index_urls=("ftp://x",))
