from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.auth.authenticator import open_authenticator
from codegen_mcp.coordinator.auth.base import BAD_TOKEN, NO_TOKEN
from codegen_mcp.coordinator.auth.config import AuthConfig
from codegen_mcp.coordinator.auth.grpc_auth import AuthInterceptor
from codegen_mcp.coordinator.auth.token_entry import TokenKind
from codegen_mcp.coordinator.auth.tokens import TokenFile
from codegen_mcp.coordinator.principal import Quotas
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.testing.access_rig import new_entry, write_tokens
from codegen_mcp.testing.manual_clock import ManualClock
from codegen_mcp.testing.memory_engine import MemoryEngine
from codegen_mcp.testing.wire import RichError, Wire, dial
from codegen_mcp.tools.registry import TOOLS

CAPACITY = sessions_pb.CapacityRequest()


@asynccontextmanager
async def guarded(config: AuthConfig, clock: ManualClock) -> AsyncIterator[Wire]:
    """A real server over an engine in memory that asks who calls."""
    async with (
        open_authenticator(config, clock) as authenticator,
        MemoryEngine(TOOLS) as engine,
        WorkerServer(
            engine.sessions,
            engine.tasks,
            ServerConfig(worker_id="guarded", port=0),
            gates=[AuthInterceptor(authenticator)],
        ) as server,
        dial(f"127.0.0.1:{server.port}") as wire,
    ):
        yield wire


def bearer(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)


async def refused(call: Any) -> RichError:
    with pytest.raises(aio.AioRpcError) as error:
        await call
    return RichError(error.value)


async def test_who_shows_a_token_of_the_file_is_served(tmp_path: Path) -> None:
    token, entry = new_entry("alice")
    write_tokens(tmp_path / "tokens", entry)
    async with guarded(AuthConfig(tokens=tmp_path / "tokens"), ManualClock()) as wire:
        assert (await wire.sessions.GetCapacity(CAPACITY, metadata=bearer(token))).worker_id
        lower = (("authorization", f"bearer {token}"),)
        assert (await wire.sessions.GetCapacity(CAPACITY, metadata=lower)).worker_id


async def test_without_a_token_every_service_says_what_to_send(tmp_path: Path) -> None:
    _, entry = new_entry("alice")
    write_tokens(tmp_path / "tokens", entry)

    async def chunks() -> AsyncIterator[files_pb.UploadChunk]:
        yield files_pb.UploadChunk()

    async with guarded(AuthConfig(tokens=tmp_path / "tokens"), ManualClock()) as wire:
        tool = tools_pb2.ToolRequest(echo=tools_pb2.EchoRequest(message="x"))
        task = tasks_pb.TaskRequest(session_id="s", typed_request=tool)
        for call in (
            wire.sessions.GetCapacity(CAPACITY),
            wire.artifacts.ListArtifacts(_list()),
            wire.tasks.ExecuteTask(task).read(),
            wire.files.Upload(chunks()),
            wire.files.Download(files_pb.DownloadRequest()).read(),
        ):
            error = await refused(call)
            assert (error.code, error.message) == (grpc.StatusCode.UNAUTHENTICATED, NO_TOKEN)
            assert error.info.reason == "UNAUTHENTICATED"


def _list() -> Any:
    from codegen_mcp._proto.codegen.v1 import artifact_service_pb2

    return artifact_service_pb2.ListArtifactsRequest(session_id="s")


async def test_every_bad_token_gets_the_same_answer(tmp_path: Path) -> None:
    clock = ManualClock()
    good, entry = new_entry("alice")
    expired, old = new_entry("bob", expires_at_ms=clock.unix_ms() - 1)
    worker, of_worker = new_entry("worker-1", TokenKind.WORKER)
    write_tokens(tmp_path / "tokens", entry, old, of_worker)
    bad = [
        expired,
        worker,
        good[:-1] + ("A" if good[-1] != "A" else "B"),
        good + "x",
        good.upper(),
        "cgm_",
        "x",
        "a.b.c",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.",
    ]
    async with guarded(AuthConfig(tokens=tmp_path / "tokens"), clock) as wire:
        for token in bad:
            error = await refused(wire.sessions.GetCapacity(CAPACITY, metadata=bearer(token)))
            assert (error.code, error.message) == (grpc.StatusCode.UNAUTHENTICATED, BAD_TOKEN)
        twice = bearer(good) + bearer(good)
        basic = (("authorization", f"Basic {good}"),)
        for metadata in (twice, basic, (("authorization", ""),)):
            error = await refused(wire.sessions.GetCapacity(CAPACITY, metadata=metadata))
            assert error.code is grpc.StatusCode.UNAUTHENTICATED


async def test_health_is_open_and_reflection_is_not(tmp_path: Path) -> None:
    token, entry = new_entry("alice")
    write_tokens(tmp_path / "tokens", entry)
    async with guarded(AuthConfig(tokens=tmp_path / "tokens"), ManualClock()) as wire:
        check = health_pb2.HealthCheckRequest(service="codegen.v1.SessionManagement")
        assert (await wire.health.Check(check)).status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(wire.channel)

        async def ask() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        error = await refused(reflection.ServerReflectionInfo(ask()).read())
        assert (error.code, error.message) == (grpc.StatusCode.UNAUTHENTICATED, NO_TOKEN)
        call = reflection.ServerReflectionInfo(ask(), metadata=bearer(token))
        answers = [answer async for answer in call]
        assert len(answers[0].list_services_response.service) > 3


async def test_a_revoked_token_ends_within_a_second_and_a_new_one_begins(tmp_path: Path) -> None:
    clock = ManualClock()
    first, one = new_entry("alice")
    second, two = new_entry("bob")
    write_tokens(tmp_path / "tokens", one)
    async with guarded(AuthConfig(tokens=tmp_path / "tokens"), clock) as wire:
        await wire.sessions.GetCapacity(CAPACITY, metadata=bearer(first))
        write_tokens(tmp_path / "tokens", two)
        clock.advance(1.0)
        error = await refused(wire.sessions.GetCapacity(CAPACITY, metadata=bearer(first)))
        assert error.code is grpc.StatusCode.UNAUTHENTICATED
        await wire.sessions.GetCapacity(CAPACITY, metadata=bearer(second))


async def test_a_file_that_cannot_be_read_lets_nobody_in_and_is_no_refusal(tmp_path: Path) -> None:
    clock = ManualClock()
    token, entry = new_entry("alice")
    path = tmp_path / "tokens"
    write_tokens(path, entry)
    async with guarded(AuthConfig(tokens=path), clock) as wire:
        for spoil in (
            lambda: path.write_text("{"),
            lambda: (write_tokens(path, entry), os.chmod(path, 0o666)),
            path.unlink,
        ):
            spoil()
            clock.advance(1.0)
            error = await refused(wire.sessions.GetCapacity(CAPACITY, metadata=bearer(token)))
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert error.has_retry
        write_tokens(path, entry)
        clock.advance(1.0)
        await wire.sessions.GetCapacity(CAPACITY, metadata=bearer(token))


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o602, 0o620])
async def test_a_file_open_to_others_refuses_to_start(tmp_path: Path, mode: int) -> None:
    _, entry = new_entry("alice")
    path = tmp_path / "tokens"
    write_tokens(path, entry)
    path.chmod(mode)
    file = TokenFile(path, clock=ManualClock(), quotas=Quotas())
    with pytest.raises(InvalidRequest, match="0600 or 0640"):
        await file.open()


async def test_the_damaged_line_is_named_and_never_shown(tmp_path: Path) -> None:
    _, entry = new_entry("alice")
    path = tmp_path / "tokens"
    write_tokens(path, entry)
    for line in (
        '{"name": "mallory", "sha256": "hunter2"}',
        '{"name": "x", "sha256": 5}',
        "[]",
        "hunter2",
        '{"name": "local", "sha256": "' + "0" * 64 + '"}',
        '{"name": "a:b", "sha256": "' + "0" * 64 + '"}',
        '{"name": "a", "sha256": "' + "0" * 64 + '", "expires": "2026-01-01T00:00:00"}',
        '{"name": "a", "sha256": "' + "0" * 64 + '", "quotas": {"sessions": -1}}',
        '{"name": "a", "sha256": "' + "0" * 64 + '", "quotas": {"sessions": true}}',
        '{"name": "a", "sha256": "' + "0" * 64 + '", "kind": "root"}',
    ):
        with path.open("a") as file:
            file.write(line + "\n")
        with pytest.raises(InvalidRequest, match="line 2") as error:
            await TokenFile(path, clock=ManualClock(), quotas=Quotas()).open()
        assert "hunter2" not in error.value.message
        write_tokens(path, entry)


async def test_without_tokens_everybody_is_the_same_principal(tmp_path: Path) -> None:
    async with guarded(AuthConfig(), ManualClock()) as wire:
        await wire.sessions.GetCapacity(CAPACITY)
        await wire.sessions.GetCapacity(CAPACITY, metadata=bearer("whatever"))
