from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from codegen_mcp.bootstrap.mcp import open_served
from codegen_mcp.cli.main import build
from codegen_mcp.client import AsyncSandbox
from codegen_mcp.client.access import link_headers
from codegen_mcp.client.errors import SandboxException
from codegen_mcp.settings import Settings
from codegen_mcp.testing.access_rig import Authority, new_entry, write_tokens
from codegen_mcp.testing.worker import TEST_SETTINGS, state_directory


async def test_the_sdk_shows_its_token_and_checks_who_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.server()
    token, entry = new_entry("alice")
    write_tokens(tmp_path / "tokens", entry)
    async with state_directory() as state:
        settings = Settings(
            **{**TEST_SETTINGS, "http_port": "auto", "base_workspace": state},
            auth_tokens=str(tmp_path / "tokens"),
            tls_cert=str(cert),
            tls_key=str(key),
            auth_links=True,
        )
        async with open_served(settings) as served:
            monkeypatch.setenv("CODEGEN_MCP_ADDRESS", f"127.0.0.1:{served.grpc.port}")
            monkeypatch.setenv("CODEGEN_MCP_CA", str(authority.ca))
            with pytest.raises(SandboxException, match="no token was given"):
                await AsyncSandbox.list()
            file = tmp_path / "token"
            file.write_text(token + "\n")
            monkeypatch.setenv("CODEGEN_MCP_TOKEN_FILE", str(file))
            async with await AsyncSandbox.create() as sandbox:
                await sandbox.files.write("a.txt", b"x" * 300_000)
                assert await sandbox.files.read("a.txt") == "x" * 300_000
                result = await sandbox.run_python("print(6 * 7)")
                assert result.stdout == "42\n"
                kept = await sandbox.artifacts.upload(b"\x00" * 1000, name="k.bin")
                assert await sandbox.artifacts.download(kept.artifact_id) == b"\x00" * 1000
                assert [one.sandbox_id for one in await AsyncSandbox.list()] == [sandbox.sandbox_id]
            monkeypatch.setenv("CODEGEN_MCP_CA", str(tmp_path / "missing"))
            with pytest.raises(SandboxException, match="CODEGEN_MCP_CA"):
                await AsyncSandbox.list()


@pytest.mark.parametrize(
    ("url", "ca", "sent"),
    [
        ("https://codegen.test:8080/artifacts/a", "ca.pem", True),
        ("http://codegen.test:8080/artifacts/a", "", True),
        ("http://codegen.test:8080/artifacts/a", "ca.pem", False),
        ("https://bucket.s3.test/a", "ca.pem", False),
        ("https://codegen.test.evil.test/a", "ca.pem", False),
        ("https://codegen.test@evil.test/a", "ca.pem", False),
    ],
)
def test_a_token_goes_with_a_link_only_where_it_goes_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, ca: str, sent: bool
) -> None:
    monkeypatch.setenv("CODEGEN_MCP_TOKEN", "secret")
    if ca:
        monkeypatch.setenv("CODEGEN_MCP_CA", str(Authority(tmp_path).ca))
    assert bool(link_headers(url, "codegen.test:50052")) == sent


def test_commands_name_a_missing_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEGEN_MCP_CERT", "cert.pem")
    done = CliRunner().invoke(build(), ["sessions"])
    assert done.exit_code == 1
    assert "CODEGEN_MCP_KEY" in done.output
