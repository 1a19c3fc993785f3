"""A session of a real worker driven over the wire, and what the host sees of it meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc import aio

from codegen_mcp._proto.codegen.v1 import (
    common_pb2,
    session_management_pb2,
    task_execution_pb2,
    tools_pb2,
    workspace_files_pb2,
)
from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox import cgroup_detect
from codegen_mcp.sandbox.bubblewrap import find_bubblewrap
from codegen_mcp.sandbox.host_processes import all_pids, runs_as
from codegen_mcp.testing.wire import Wire

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ran:
    """How a task ended, and everything that was streamed until then."""

    result: task_execution_pb2.TaskResult
    error: task_execution_pb2.TaskError
    stdout: bytes
    stderr: bytes
    seconds: float
    """From the request to the last message, as the caller saw it."""

    @property
    def facts(self) -> task_execution_pb2.ExecutionMetadata:
        """Of the result."""
        return self.result.metadata

    @property
    def ended_by(self) -> str:
        """In lower case, without the prefix; ``error`` where there is no result."""
        if self.error.code:
            return "error"
        return ended_by_name(self.facts.ended_by)

    @property
    def limits_hit(self) -> tuple[str, ...]:
        """Named like ``ended_by``."""
        return tuple(map(ended_by_name, self.facts.limits_hit))

    @property
    def ok(self) -> bool:
        """Whether it exited by itself with code 0."""
        return self.ended_by == "exit" and self.facts.exit_code == 0

    @property
    def answer(self) -> tools_pb2.RunPythonResponse:
        """Of run.python."""
        return self.result.typed_response.run_python

    @property
    def json(self) -> Any:
        """Of a tool called by name."""
        return json.loads(self.result.typed_response.call.result_json)


class Driven:
    """One session."""

    def __init__(self, wire: Wire, session_id: str) -> None:
        self.wire = wire
        self.id = session_id

    async def task(self, tool: tools_pb2.ToolRequest, **fields: Any) -> Ran:
        """Run a tool to its end; ``timeout_s`` and fields of TaskRequest and constraints."""
        started = time.perf_counter()
        call = self.wire.tasks.ExecuteTask(self.request(tool, **fields))
        return await follow(call, started)

    def request(
        self,
        tool: tools_pb2.ToolRequest,
        *,
        timeout_s: int = 0,
        memory_bytes: int = 0,
        output_bytes: int = 0,
        **fields: Any,
    ) -> task_execution_pb2.TaskRequest:
        """Make the request without sending it."""
        return task_execution_pb2.TaskRequest(
            session_id=self.id,
            typed_request=tool,
            constraints=task_execution_pb2.ExecutionConstraints(
                timeout_seconds=timeout_s,
                max_memory_bytes=memory_bytes,
                max_output_bytes=output_bytes,
            ),
            **fields,
        )

    async def python(self, code: str, **fields: Any) -> Ran:
        """Run code."""
        return await self.task(python(code), **fields)

    async def shell(self, command: str, **fields: Any) -> Ran:
        """Run a command line."""
        return await self.task(call("run.shell", command=command), **fields)

    async def write(self, path: str, data: bytes) -> Ran:
        """Write a file with fs.write."""
        request = tools_pb2.FsWriteRequest(path=path, data=data, create_dirs=True)
        return await self.task(tools_pb2.ToolRequest(fs_write=request))

    async def read(self, path: str) -> Ran:
        """Read a file with fs.read."""
        return await self.task(tools_pb2.ToolRequest(fs_read=tools_pb2.FsReadRequest(path=path)))

    async def upload(self, path: str, pieces: Iterable[bytes]) -> workspace_files_pb2.UploadSummary:
        """Stream a file in; the whole is checked by length and sha256."""

        async def parts() -> AsyncIterator[workspace_files_pb2.UploadChunk]:
            header = workspace_files_pb2.UploadHeader(
                session_id=self.id, path=path, create_dirs=True
            )
            yield workspace_files_pb2.UploadChunk(header=header)
            size, digest = 0, hashlib.sha256()
            for piece in pieces:
                size += len(piece)
                digest.update(piece)
                yield workspace_files_pb2.UploadChunk(data=piece)
            end = workspace_files_pb2.UploadEnd(size=size, sha256=digest.hexdigest())
            yield workspace_files_pb2.UploadChunk(end=end)

        return await self.wire.files.Upload(parts())

    async def sha256(self, path: str) -> str:
        """Stream a file out and hash what came."""
        request = workspace_files_pb2.DownloadRequest(session_id=self.id, path=path)
        digest = hashlib.sha256()
        async for part in self.wire.files.Download(request):
            digest.update(part.data)
        return digest.hexdigest()

    async def destroy(self) -> None:
        """End it at once."""
        with suppress(aio.AioRpcError):
            await self.wire.sessions.DestroySession(
                session_management_pb2.DestroySessionRequest(session_id=self.id, force=True)
            )


async def follow(call: AsyncIterable[task_execution_pb2.TaskResponse], started: float) -> Ran:
    """Collect a task's stream to its last message."""
    streams: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    last = task_execution_pb2.TaskResponse()
    async for last in call:
        if last.HasField("log"):
            streams[last.log.source].append(last.log.data)
    return Ran(
        last.result,
        last.error,
        b"".join(streams["stdout"]),
        b"".join(streams["stderr"]),
        time.perf_counter() - started,
    )


@asynccontextmanager
async def driven(wire: Wire, **limits: int) -> AsyncIterator[Driven]:
    """Make a session with these limits (of the wire's ResourceLimits); destroyed at the end."""
    config = session_management_pb2.SessionConfig(limits=common_pb2.ResourceLimits(**limits))
    session = Driven(wire, await wire.session(config=config))
    try:
        yield session
    finally:
        await session.destroy()


def python(code: str, **fields: Any) -> tools_pb2.ToolRequest:
    """Return the request of run.python."""
    return tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code, **fields))


def call(name: str, **arguments: Any) -> tools_pb2.ToolRequest:
    """Return the request of a tool by name."""
    text = json.dumps(arguments)
    return tools_pb2.ToolRequest(call=tools_pb2.ToolCall(name=name, arguments_json=text))


def ended_by_name(value: int) -> str:
    """Name a value of EndedBy."""
    return common_pb2.EndedBy.Name(value).removeprefix("ENDED_BY_").lower()  # type: ignore[arg-type]


def host_user(state: Path, session_id: str) -> int:
    """Read from a worker's state directory as which host user a session runs."""
    record = json.loads((state / "sessions" / session_id / "session.json").read_text())
    uid: int = record["identity"]["uid"]
    return uid


def processes_of(uids: Iterable[int]) -> list[int]:
    """Pids, zombies left out, that run as one of these users."""
    matches = runs_as(frozenset(uids))
    return [pid for pid in all_pids() if matches(pid)]


def descendants(pid: int) -> dict[int, str]:
    """Pid to start time of every process below one."""
    parents: dict[int, tuple[int, str]] = {}
    for each in all_pids():
        if stat := stat_of(each):
            parents[each] = int(stat[1]), stat[19]
    found: dict[int, str] = {}
    below = {pid}
    while below:
        below = {each for each, (parent, _) in parents.items() if parent in below}
        found.update({each: parents[each][1] for each in below})
    return found


def stat_of(pid: int) -> list[str]:
    """Fields of proc_pid_stat(5) from the state on; empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


async def until(
    condition: Callable[[], Any] | Callable[[], Awaitable[Any]], within_s: float = 5.0
) -> Any:
    """Wait until a condition holds and return what it gave; the last value when it never does."""
    deadline = time.monotonic() + within_s
    while True:
        value: Any = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value or time.monotonic() >= deadline:
            return value
        await asyncio.sleep(0.02)


def p95(samples: list[float]) -> float:
    """Nearest rank."""
    ordered = sorted(samples)
    return ordered[max(0, -(-95 * len(ordered) // 100) - 1)]


def why_no_kernel_limits() -> str:
    """Say what a worker lacks here for sessions that the kernel limits; empty when nothing."""
    if os.geteuid() != 0:
        return "volumes of a fixed size need root"
    try:
        find_bubblewrap()
    except SandboxUnavailable as error:
        return error.message
    found = cgroup_detect.detect(secrets.token_hex(8))
    if found.driver is not None:
        found.driver.close()
    lacking = {name: found.refused[name] for name in ("memory", "pids") if name in found.refused}
    return f"control groups: {lacking}; {found.fix}" if lacking else ""
