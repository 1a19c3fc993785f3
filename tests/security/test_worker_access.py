from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2, worker_lifecycle_pb2_grpc
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.bootstrap.coordinator import open_coordinator
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.settings import Settings
from codegen_mcp.testing.access_rig import AUDIENCE, ISSUER, new_entry, write_tokens
from codegen_mcp.testing.wire import RichError

from codegen_mcp.coordinator.auth.token_entry import TokenKind  # isort: skip

Call = Callable[[Any, str, Any], Any]


async def hello() -> AsyncIterator[pb.TaskStreamMessage]:
    yield pb.TaskStreamMessage(hello=pb.StreamHello(worker_id="one"))


CALLS: dict[str, Call] = {
    "RegisterWorker": lambda stub, token, metadata: stub.RegisterWorker(
        pb.RegisterRequest(worker_id="one", auth_token=token), metadata=metadata
    ),
    "Heartbeat": lambda stub, token, metadata: stub.Heartbeat(
        pb.HeartbeatRequest(worker_id="one", incarnation=1), metadata=metadata
    ),
    "DeregisterWorker": lambda stub, token, metadata: stub.DeregisterWorker(
        pb.DeregisterRequest(worker_id="one"), metadata=metadata
    ),
    "TaskStream": lambda stub, token, metadata: stub.TaskStream(hello(), metadata=metadata).read(),
}
"""Every RPC of workers, as somebody calls it who is not worker ``one``."""


def test_every_rpc_of_workers_has_a_row() -> None:
    service = worker_lifecycle_pb2.DESCRIPTOR.services_by_name["WorkerLifecycle"]
    assert set(CALLS) == {method.name for method in service.methods}


@asynccontextmanager
async def coordinator(directory: Path, **settings: Any) -> AsyncIterator[str]:
    made = Settings(base_workspace=directory / "state", coordinator_port=0, **settings)
    async with open_coordinator(made) as opened:
        yield f"127.0.0.1:{opened.server.port}"


@asynccontextmanager
async def dialled(address: str) -> AsyncIterator[Any]:
    """Each on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with aio.insecure_channel(address, options=options) as channel:
        yield worker_lifecycle_pb2_grpc.WorkerLifecycleStub(channel)


async def test_nobody_is_taken_for_a_worker_but_by_its_own_token(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    one, of_one = new_entry("one", TokenKind.WORKER)
    two, of_two = new_entry("two*", TokenKind.WORKER)
    alice, of_alice = new_entry("alice")
    tokens = tmp_path / "tokens"
    write_tokens(tokens, of_one, of_two, of_alice)
    async with coordinator(tmp_path, auth_tokens=str(tokens)) as address:
        async with dialled(address) as stub:
            joined = await CALLS["RegisterWorker"](stub, one, None)
            assert joined.accepted
            said: set[str] = set()
            for token in ("", "x", two, alice, one + "x", joined.session_id):
                for name, call in CALLS.items():
                    async with dialled(address) as other:
                        bearer = (("authorization", f"Bearer {token}"),) if token else None
                        with pytest.raises(aio.AioRpcError) as error:
                            await call(other, token, bearer)
                        rich = RichError(error.value)
                        assert rich.code.name == "UNAUTHENTICATED", (name, token)
                        if token:
                            said.add(rich.message)
            assert len(said) == 1  # never a hint which of them it was
            # What the others tried has changed nothing.
            beat = pb.HeartbeatRequest(
                worker_id="one", session_id=joined.session_id, incarnation=joined.incarnation
            )
            assert (await stub.Heartbeat(beat)).continue_serving


async def test_a_worker_token_is_none_for_sessions(tmp_path: Path) -> None:
    from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
    from codegen_mcp.testing.wire import dial

    (tmp_path / "state").mkdir()
    one, of_one = new_entry("one", TokenKind.WORKER)
    tokens = tmp_path / "tokens"
    write_tokens(tokens, of_one)
    async with coordinator(tmp_path, auth_tokens=str(tokens)) as address, dial(address) as wire:
        with pytest.raises(aio.AioRpcError) as error:
            await wire.sessions.ListSessions(
                sessions_pb.ListSessionsRequest(), metadata=(("authorization", f"Bearer {one}"),)
            )
        assert RichError(error.value).code.name == "UNAUTHENTICATED"


async def test_where_callers_are_asked_workers_are_too(tmp_path: Path) -> None:
    """An issuer of JWTs, or client certificates, let no worker in; so they are not enough."""
    (tmp_path / "state").mkdir()
    with pytest.raises(InvalidRequest, match="token new --worker"):
        async with coordinator(
            tmp_path,
            auth_jwks="https://issuer.test/keys",
            auth_jwt_issuer=ISSUER,
            auth_jwt_audience=AUDIENCE,
        ):
            pass


async def test_beyond_this_machine_nobody_is_served_unasked(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(InvalidRequest, match="insecure-no-auth"):
        async with coordinator(tmp_path, host="0.0.0.0"):
            pass
