"""The wire in tests: every stub over one channel, and a real server over an engine in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2_grpc

from codegen_mcp._proto.codegen.v1 import (
    artifact_service_pb2_grpc,
    session_management_pb2,
    session_management_pb2_grpc,
    task_execution_pb2,
    task_execution_pb2_grpc,
    tools_pb2,
    workspace_files_pb2_grpc,
)
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, EndedBy, Outcome, PythonCode
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.testing.memory_engine import MemoryEngine
from codegen_mcp.testing.memory_task import Runner, no_code
from codegen_mcp.tools.base import Tool
from codegen_mcp.tools.registry import TOOLS


class Wire:
    """Every stub of a worker over one channel."""

    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel
        self.sessions = session_management_pb2_grpc.SessionManagementStub(channel)
        self.tasks = task_execution_pb2_grpc.TaskExecutionStub(channel)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        self.files = workspace_files_pb2_grpc.WorkspaceFilesStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def session(self, **fields: Any) -> str:
        """Make a session and return its id."""
        request = session_management_pb2.CreateSessionRequest(**fields)
        return (await self.sessions.CreateSession(request)).session_id

    async def run(
        self, session_id: str, tool: tools_pb2.ToolRequest, **fields: Any
    ) -> list[task_execution_pb2.TaskResponse]:
        """Run one tool and return its whole stream."""
        call = self.tasks.ExecuteTask(
            task_execution_pb2.TaskRequest(session_id=session_id, typed_request=tool, **fields)
        )
        return [message async for message in call]


@asynccontextmanager
async def dial(address: str) -> AsyncIterator[Wire]:
    """Open a channel to a worker; closed at the end."""
    async with aio.insecure_channel(address) as channel:
        yield Wire(channel)


class MemoryWorker:
    """A server over an engine in memory."""

    def __init__(self, engine: MemoryEngine, server: WorkerServer, wire: Wire) -> None:
        self.engine = engine
        self.server = server
        self.wire = wire
        self.address = f"127.0.0.1:{server.port}"


@asynccontextmanager
async def memory_worker(
    *,
    tools: Sequence[Tool[Any, Any]] = TOOLS,
    runner: Runner = no_code,
    max_sessions: int = 8,
    checkpoints: bool = True,
    **config: Any,
) -> AsyncIterator[MemoryWorker]:
    """Serve an engine in memory on a free port and dial it; ``checkpoints`` False keeps none."""
    settings = ServerConfig(**{"worker_id": "memory-worker", "port": 0, **config})
    async with (
        MemoryEngine(tools, runner=runner, max_sessions=max_sessions) as engine,
        WorkerServer(
            engine.sessions,
            engine.tasks,
            settings,
            checkpoints=engine.checkpoints if checkpoints else None,
        ) as server,
        dial(f"127.0.0.1:{server.port}") as wire,
    ):
        yield MemoryWorker(engine, server, wire)


Script = Callable[[OutputSink], Awaitable[Outcome]]
"""Stands in for a program: prints into the sink and ends."""


def scripted(**scripts: Script) -> Runner:
    """Return a runner whose programs are these, by the text of their code."""

    async def run(command: Command, sink: OutputSink) -> Outcome:
        assert isinstance(command.program, PythonCode)
        return await scripts[command.program.code.decode()](sink)

    return run


def exited(code: int = 0) -> Outcome:
    """Return the outcome of a program that ended by itself."""
    return Outcome(ended_by=EndedBy.EXIT, exit_code=code)


class RichError:
    """What a failed call tells beside its status."""

    def __init__(self, error: aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details() or ""
        trailers = {str(key): value for key, value in error.trailing_metadata() or ()}
        self.request_id = str(trailers.get("x-request-id", ""))
        status = status_pb2.Status.FromString(_bytes(trailers.get("grpc-status-details-bin", b"")))
        self.info = error_details_pb2.ErrorInfo()
        self.retry = error_details_pb2.RetryInfo()
        self.request = error_details_pb2.RequestInfo()
        self.has_retry = any(_unpacked(status, self.retry))
        self.has_info = any(_unpacked(status, self.info))
        any(_unpacked(status, self.request))


def _unpacked(status: status_pb2.Status, into: Any) -> list[bool]:
    details: Sequence[AnyMessage] = status.details
    return [detail.Unpack(into) for detail in details]


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
