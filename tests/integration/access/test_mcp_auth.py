from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import MCPServer

from codegen_mcp.coordinator.auth.authenticator import open_authenticator
from codegen_mcp.coordinator.auth.base import Peer
from codegen_mcp.coordinator.auth.config import AuthConfig, JwtConfig
from codegen_mcp.coordinator.auth.mcp_auth import (
    PrincipalVerifier,
    UnavailableGate,
    auth_settings,
    mcp_principal,
)
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.core.errors import Unavailable
from codegen_mcp.http.server import HttpServer
from codegen_mcp.testing.access_rig import AUDIENCE, Issuer, new_entry, write_tokens
from codegen_mcp.testing.manual_clock import ManualClock


class NobodyKnows:
    """An authenticator that cannot tell now."""

    asks = True

    async def authenticate(self, token: str | None, peer: Peer) -> Principal:
        raise Unavailable("tokens cannot be checked now; try again", retry_after_s=7.0)


@asynccontextmanager
async def mcp_server(config: AuthConfig, authenticator: Any = None) -> AsyncIterator[str]:
    """A real MCP server over HTTP with one tool that says who called it."""
    made = MCPServer("who")

    @made.tool()
    def whoami() -> str:
        return mcp_principal(asks=config.asks).name

    server: Server[Any] = made._lowlevel_server
    async with open_authenticator(config, ManualClock()) as opened:
        verifier = PrincipalVerifier(authenticator or opened)
        app = server.streamable_http_app(
            auth=auth_settings(config, "http://127.0.0.1/mcp") if config.asks else None,
            token_verifier=verifier if config.asks else None,
        )
        async with (
            app.router.lifespan_context(app),
            HttpServer(UnavailableGate(app), host="127.0.0.1", port=0) as http,
        ):
            yield f"http://127.0.0.1:{http.port}"


async def whoami(base: str, mode: str, token: str) -> str:
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}) as http:
        transport = streamable_http_client(f"{base}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            result = await client.call_tool("whoami", {})
            return result.content[0].text  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_tool_handler_learns_who_called_in_both_protocols(
    tmp_path: Path, mode: str
) -> None:
    alice, one = new_entry("alice")
    bob, two = new_entry("bob")
    write_tokens(tmp_path / "tokens", one, two)
    async with mcp_server(AuthConfig(tokens=tmp_path / "tokens")) as base:
        assert await whoami(base, mode, alice) == "alice"
        assert await whoami(base, mode, bob) == "bob"


async def test_another_principal_cannot_use_a_stateful_session(tmp_path: Path) -> None:
    alice, one = new_entry("alice")
    bob, two = new_entry("bob")
    write_tokens(tmp_path / "tokens", one, two)
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        },
    }
    accept = {"accept": "application/json, text/event-stream"}
    async with (
        mcp_server(AuthConfig(tokens=tmp_path / "tokens")) as base,
        httpx2.AsyncClient(base_url=base, headers=accept) as http,
    ):
        mine = {"authorization": f"Bearer {alice}"}
        answer = await http.post("/mcp", json=body, headers=mine)
        handle = {"mcp-session-id": answer.headers["mcp-session-id"]}
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        theirs = {"authorization": f"Bearer {bob}"}
        assert (await http.post("/mcp", json=listing, headers=mine | handle)).status_code == 200
        answer = await http.post("/mcp", json=listing, headers=theirs | handle)
        assert answer.status_code == 404


async def test_no_and_bad_tokens_are_401_in_the_same_words(tmp_path: Path) -> None:
    token, entry = new_entry("alice")
    write_tokens(tmp_path / "tokens", entry)
    async with (
        mcp_server(AuthConfig(tokens=tmp_path / "tokens")) as base,
        httpx2.AsyncClient(base_url=base) as http,
    ):
        answers = [
            await http.post("/mcp", headers=headers, json={})
            for headers in (
                {},
                {"authorization": "Bearer x"},
                {"authorization": f"Bearer {token}x"},
                {"authorization": f"Basic {token}"},
            )
        ]
        assert {answer.status_code for answer in answers} == {401}
        assert len({answer.text for answer in answers}) == 1
        assert answers[0].headers["www-authenticate"].startswith("Bearer ")


async def test_clients_are_told_the_issuer_of_jwts(tmp_path: Path) -> None:
    issuer = Issuer()
    issuer.add("one")
    with issuer.serving() as address:
        config = AuthConfig(
            jwt=JwtConfig(jwks=address, issuer="https://issuer.test", audience=(AUDIENCE,))
        )
        async with mcp_server(config) as base, httpx2.AsyncClient(base_url=base) as http:
            refused = await http.post("/mcp", json={})
            assert "resource_metadata=" in refused.headers["www-authenticate"]
            told = (await http.get("/.well-known/oauth-protected-resource/mcp")).json()
            assert told["authorization_servers"] == ["https://issuer.test"]
            assert await whoami(base, "2026-07-28", issuer.issue("alice")) == "jwt:alice"


async def test_what_cannot_be_checked_now_is_503_and_says_when_to_come_again(
    tmp_path: Path,
) -> None:
    _, entry = new_entry("alice")
    write_tokens(tmp_path / "tokens", entry)
    async with (
        mcp_server(AuthConfig(tokens=tmp_path / "tokens"), NobodyKnows()) as base,
        httpx2.AsyncClient(base_url=base) as http,
    ):
        answer = await http.post("/mcp", headers={"authorization": "Bearer x"}, json={})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
        assert answer.json()["error"] == "temporarily_unavailable"
        assert (await http.post("/mcp", json={})).status_code == 401
