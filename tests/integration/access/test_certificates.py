from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp.coordinator.auth.authenticator import open_authenticator
from codegen_mcp.coordinator.auth.base import Authenticator, Peer
from codegen_mcp.coordinator.auth.config import AuthConfig, ClientTlsConfig, TlsConfig
from codegen_mcp.coordinator.auth.grpc_auth import AuthInterceptor
from codegen_mcp.coordinator.auth.tls import ServerIdentity, channel_credentials
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.testing.access_rig import Authority, new_entry, write_tokens
from codegen_mcp.testing.memory_engine import MemoryEngine
from codegen_mcp.testing.wire import Wire
from codegen_mcp.tools.registry import TOOLS

CAPACITY = sessions_pb.CapacityRequest()


class Recorder:
    """Remembers whom the authenticator took."""

    def __init__(self, inner: Authenticator) -> None:
        self._inner = inner
        self.asks = inner.asks
        self.taken: list[Principal] = []

    async def authenticate(self, token: str | None, peer: Peer) -> Principal:
        self.taken.append(await self._inner.authenticate(token, peer))
        return self.taken[-1]


@asynccontextmanager
async def secured(
    tls: TlsConfig, auth: AuthConfig | None = None
) -> AsyncIterator[tuple[int, Recorder]]:
    """A real server with TLS; its port, and whom it took."""
    async with open_authenticator(auth or AuthConfig()) as authenticator:
        recorder = Recorder(authenticator)
        async with (
            MemoryEngine(TOOLS) as engine,
            WorkerServer(
                engine.sessions,
                engine.tasks,
                ServerConfig(worker_id="secured", port=0),
                gates=[AuthInterceptor(recorder)],
                credentials=ServerIdentity(tls).grpc(),
            ) as server,
        ):
            yield server.port, recorder


async def ask(port: int, client: ClientTlsConfig | None, *, token: str = "") -> Any:
    """One call over a connection of its own; fails within a few seconds."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{port}"
    channel = (
        aio.insecure_channel(address, options=options)
        if client is None
        else aio.secure_channel(address, channel_credentials(client), options=options)
    )
    metadata = (("authorization", f"Bearer {token}"),) if token else None
    async with channel:
        return await Wire(channel).sessions.GetCapacity(CAPACITY, metadata=metadata, timeout=5)


async def test_a_client_that_trusts_the_authority_is_served_and_others_are_not(
    tmp_path: Path,
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    cert, key = authority.server()
    async with secured(TlsConfig(cert=cert, key=key)) as (port, _):
        assert (await ask(port, ClientTlsConfig(ca=authority.ca))).worker_id == "secured"
        for client in (None, ClientTlsConfig(ca=other.ca)):
            with pytest.raises(aio.AioRpcError) as error:
                await ask(port, client)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_certificate_is_asked_for_and_names_the_principal(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    cert, key = authority.server()
    tls = TlsConfig(cert=cert, key=key, client_ca=authority.ca)
    uri = x509.UniformResourceIdentifier("spiffe://example/alice")
    named = authority.issue("alice", "ignored", names=[uri, x509.DNSName("alice.test")])
    plain = authority.issue("bob", "bob")
    dns = authority.issue("carol", "ignored", names=[x509.DNSName("carol.test")])
    mail = authority.issue("dave", "ignored", names=[x509.RFC822Name("dave@test")])
    forged = other.issue("mallory", "bob")
    async with secured(tls, AuthConfig(certificates=True)) as (port, recorder):
        for pair, name in (
            (named, "cert:spiffe://example/alice"),
            (plain, "cert:bob"),
            (dns, "cert:carol.test"),
            (mail, "cert:dave@test"),
        ):
            client = ClientTlsConfig(ca=authority.ca, cert=pair[0], key=pair[1])
            await ask(port, client)
            assert recorder.taken[-1].name == name
        taken = len(recorder.taken)
        for client in (
            ClientTlsConfig(ca=authority.ca),
            ClientTlsConfig(ca=authority.ca, cert=forged[0], key=forged[1]),
        ):
            with pytest.raises(aio.AioRpcError) as error:
                await ask(port, client)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert len(recorder.taken) == taken


async def test_a_bad_token_is_refused_whatever_the_certificate_says(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.server()
    mine = authority.issue("alice", "alice")
    token, entry = new_entry("bob")
    write_tokens(tmp_path / "tokens", entry)
    tls = TlsConfig(cert=cert, key=key, client_ca=authority.ca)
    auth = AuthConfig(tokens=tmp_path / "tokens", certificates=True)
    client = ClientTlsConfig(ca=authority.ca, cert=mine[0], key=mine[1])
    async with secured(tls, auth) as (port, recorder):
        await ask(port, client)
        await ask(port, client, token=token)
        assert [principal.name for principal in recorder.taken] == ["cert:alice", "bob"]
        with pytest.raises(aio.AioRpcError) as error:
            await ask(port, client, token=token + "x")
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_renewed_certificate_serves_the_next_connection(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    cert, key = old.server()
    async with secured(TlsConfig(cert=cert, key=key)) as (port, _):
        await ask(port, ClientTlsConfig(ca=old.ca))
        # Half of a renewal: the key does not fit, so the last good pair goes on to serve.
        kept = cert.read_bytes()
        new.server()
        new_cert = cert.read_bytes()
        cert.write_bytes(kept)
        await ask(port, ClientTlsConfig(ca=old.ca))
        cert.write_bytes(new_cert)
        await ask(port, ClientTlsConfig(ca=new.ca))
        with pytest.raises(aio.AioRpcError):
            await ask(port, ClientTlsConfig(ca=old.ca))


async def test_files_that_do_not_fit_are_named_at_the_start(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, _ = authority.server()
    _, key = authority.issue("another", "another")
    with pytest.raises(InvalidRequest, match="do not fit together"):
        ServerIdentity(TlsConfig(cert=cert, key=key))
    with pytest.raises(InvalidRequest, match=r"nowhere.*No such file"):
        ServerIdentity(TlsConfig(cert=tmp_path / "nowhere", key=key))
    with pytest.raises(ValueError, match="key"):
        ClientTlsConfig(cert=cert)


async def test_old_protocol_versions_are_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.server()
    context = ServerIdentity(TlsConfig(cert=cert, key=key)).http()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
