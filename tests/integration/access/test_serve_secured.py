"""The whole service behind TLS: gRPC and MCP by one certificate, tokens and client certificates."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from grpc import aio
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp.bootstrap.mcp import Served, open_served
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.settings import Settings
from codegen_mcp.testing.access_rig import Authority, new_entry, write_tokens
from codegen_mcp.testing.wire import Wire
from codegen_mcp.testing.worker import TEST_SETTINGS, state_directory

LIST = sessions_pb.ListSessionsRequest()


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Served]:
    async with state_directory() as state:
        made = Settings(
            **{**TEST_SETTINGS, "http_port": "auto", "base_workspace": state, **settings}
        )
        async with open_served(made) as opened:
            yield opened


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_both_faces_are_served_by_tls_to_who_has_a_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.server()
    token, entry = new_entry("alice")
    write_tokens(tmp_path / "tokens", entry)
    async with served(
        tls_cert=str(cert), tls_key=str(key), auth_tokens=str(tmp_path / "tokens")
    ) as service:
        credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
        address = f"127.0.0.1:{service.grpc.port}"
        async with aio.secure_channel(address, credentials) as channel:
            wire = Wire(channel)
            await wire.sessions.ListSessions(LIST, metadata=tuple(bearer(token).items()))
            with pytest.raises(aio.AioRpcError) as error:
                await wire.sessions.ListSessions(LIST)
            assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        async with aio.insecure_channel(address) as channel:
            with pytest.raises(aio.AioRpcError) as error:
                await Wire(channel).sessions.ListSessions(LIST, timeout=2)
            assert error.value.code() in {
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            }
        assert service.mcp_url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(authority.ca))
        async with (
            httpx2.AsyncClient(headers=bearer(token), verify=trusting) as http,
            Client(streamable_http_client(service.mcp_url, http_client=http)) as agent,
        ):
            assert not (await agent.call_tool("session_list", {})).is_error
        async with httpx2.AsyncClient(headers=bearer(token)) as http:
            with pytest.raises(httpx2.ConnectError):
                await http.get(service.mcp_url)
            with pytest.raises(httpx2.HTTPError):
                await http.get(service.mcp_url.replace("https:", "http:"))


async def test_a_client_certificate_keeps_principals_apart(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "strange")
    cert, key = authority.server()
    async with served(
        tls_cert=str(cert),
        tls_key=str(key),
        tls_client_ca=str(authority.ca),
        auth_certificates=True,
    ) as service:
        address = f"127.0.0.1:{service.grpc.port}"

        @asynccontextmanager
        async def by(issuer: Authority | None, name: str) -> AsyncIterator[Wire]:
            shown = (None, None)
            if issuer is not None:
                paths = issuer.issue(name, name)
                shown = paths[1].read_bytes(), paths[0].read_bytes()
            credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes(), *shown)
            async with aio.secure_channel(address, credentials) as channel:
                yield Wire(channel)

        async with by(authority, "alice") as alice, by(authority, "bob") as bob:
            made = await alice.sessions.CreateSession(sessions_pb.CreateSessionRequest())
            assert len((await alice.sessions.ListSessions(LIST)).sessions) == 1
            assert len((await bob.sessions.ListSessions(LIST)).sessions) == 0
            status = sessions_pb.SessionStatusRequest(session_id=made.session_id)
            with pytest.raises(aio.AioRpcError) as error:
                await bob.sessions.GetSessionStatus(status)
            assert error.value.code() == grpc.StatusCode.NOT_FOUND
        for issuer in (None, stranger):
            async with by(issuer, "mallory") as nobody:
                with pytest.raises(aio.AioRpcError) as error:
                    await nobody.sessions.ListSessions(LIST, timeout=2)
                assert error.value.code() in {
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                }
        # Agents show tokens: where there are none for them, nobody is let in by HTTP.
        trusting = ssl.create_default_context(cafile=str(authority.ca))
        trusting.load_cert_chain(*map(str, authority.issue("alice", "alice")))
        async with httpx2.AsyncClient(verify=trusting) as http:
            answer = await http.post(service.mcp_url, json={})
        assert answer.status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
async def test_beyond_this_machine_nobody_is_served_unasked(host: str) -> None:
    with pytest.raises(InvalidRequest, match="token new"):
        async with served(host=host):
            pass
