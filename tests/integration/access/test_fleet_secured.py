"""A coordinator and its worker, each with a certificate, and nobody in without a token."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp.bootstrap import open_worker
from codegen_mcp.bootstrap.coordinator import open_coordinator
from codegen_mcp.coordinator.auth.token_entry import TokenKind
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.audit_verify import verify
from codegen_mcp.testing.access_rig import Authority, new_entry, write_tokens
from codegen_mcp.testing.tenants import SECRET, make_things
from codegen_mcp.testing.wire import RichError, Wire
from codegen_mcp.testing.worker import TEST_SETTINGS, state_directory

LIST = sessions_pb.ListSessionsRequest()


def bearer(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)


async def code_of(call: Any) -> tuple[str, str]:
    with pytest.raises(aio.AioRpcError) as error:
        await call
    rich = RichError(error.value)
    return rich.code.name, rich.info.reason


async def test_only_the_coordinator_is_answered_by_a_worker_and_only_to_principals(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.server()
    mine, my_key = authority.issue("fleet", "fleet")
    alice, of_alice = new_entry("alice")
    bob, of_bob = new_entry("bob")
    one, of_one = new_entry("one", TokenKind.WORKER)
    write_tokens(tmp_path / "tokens", of_alice, of_bob, of_one)
    tls = {
        "tls_cert": str(cert),
        "tls_key": str(key),
        "tls_client_ca": str(authority.ca),
        "tls_ca": str(authority.ca),
        "tls_client_cert": str(mine),
        "tls_client_key": str(my_key),
    }
    credentials = grpc.ssl_channel_credentials(
        authority.ca.read_bytes(), my_key.read_bytes(), mine.read_bytes()
    )
    (tmp_path / "coordinator").mkdir()
    coordinating = Settings(
        base_workspace=tmp_path / "coordinator",
        coordinator_port=0,
        auth_tokens=str(tmp_path / "tokens"),
        **tls,
    )
    async with state_directory() as state, open_coordinator(coordinating) as coordinator:
        address = f"127.0.0.1:{coordinator.server.port}"
        working = Settings(
            **{**TEST_SETTINGS, "base_workspace": state, **tls},
            http_port=0,
            worker_id="one",
            coordinator_addr=address,
            coordinator_token=one,
        )
        async with (
            open_worker(working) as worker,
            aio.secure_channel(address, credentials) as channel,
            aio.secure_channel(f"127.0.0.1:{worker.server.port}", credentials) as direct,
        ):
            async with asyncio.timeout(20):
                while not [w for w in coordinator.routing.workers.all() if w.link is not None]:
                    await asyncio.sleep(0.02)
            wire = Wire(channel)
            ids = await make_things(wire, bearer(alice))
            status = sessions_pb.SessionStatusRequest(session_id=ids.session)
            found = await wire.sessions.GetSessionStatus(status, metadata=bearer(alice))
            assert found.worker_id == "one"
            assert await code_of(wire.sessions.GetSessionStatus(status, metadata=bearer(bob))) == (
                "NOT_FOUND",
                "SESSION_NOT_FOUND",
            )
            assert not (await wire.sessions.ListSessions(LIST, metadata=bearer(bob))).sessions
            for metadata in (None, bearer(one), bearer(alice + "x")):
                code, _ = await code_of(wire.sessions.ListSessions(LIST, metadata=metadata))
                assert code == "UNAUTHENTICATED"
            # Beside the coordinator nobody gets to a worker, whatever token they have.
            for metadata in (None, bearer(alice), bearer(one)):
                call = Wire(direct).sessions.GetSessionStatus(status, metadata=metadata)
                assert await code_of(call) == ("UNAUTHENTICATED", "COORDINATOR_ONLY")
        log = coordinator.routing.audit
        assert log is not None
    recorded = verify(tmp_path / "coordinator" / "audit", [log.published])
    assert recorded.sound
    assert recorded.calls >= 6
    written = b"".join(p.read_bytes() for p in (tmp_path / "coordinator" / "audit").glob("*.jsonl"))
    for secret in (alice, bob, one, SECRET):
        assert secret.encode() not in written
