"""The measured calls, by the worker's own stubs; the caller times them."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from codegen_mcp._proto.codegen.v1 import (
    session_management_pb2 as sm,
)
from codegen_mcp._proto.codegen.v1 import (
    task_execution_pb2 as te,
)
from codegen_mcp._proto.codegen.v1 import (
    tools_pb2,
)
from codegen_mcp.client.connection import Connection

TEXT = "x" * 4096
Case = Callable[[], Awaitable[object]]


def request(session: str, **tool: object) -> te.TaskRequest:
    return te.TaskRequest(session_id=session, typed_request=tools_pb2.ToolRequest(**tool))


async def execute(connection: Connection, message: te.TaskRequest) -> te.TaskResult:
    result = None
    async for response in connection.tasks.ExecuteTask(message):
        if response.HasField("error"):
            raise RuntimeError(response.error.message)
        if response.HasField("result"):
            result = response.result
    assert result is not None
    return result


async def create(connection: Connection, **config: object) -> str:
    message = sm.CreateSessionRequest(config=sm.SessionConfig(**config))
    return (await connection.sessions.CreateSession(message)).session_id


async def destroy(connection: Connection, session: str) -> None:
    message = sm.DestroySessionRequest(session_id=session, force=True)
    await connection.sessions.DestroySession(message)


async def status(connection: Connection, session: str) -> None:
    await connection.sessions.GetSessionStatus(sm.SessionStatusRequest(session_id=session))


def echo(session: str) -> te.TaskRequest:
    return request(session, echo=tools_pb2.EchoRequest(message="x" * 64))


def read(session: str) -> te.TaskRequest:
    return request(session, fs_read=tools_pb2.FsReadRequest(path="bench.txt"))


def write(session: str) -> te.TaskRequest:
    return request(session, fs_write=tools_pb2.FsWriteRequest(path="bench.txt", contents=TEXT))


def run(session: str, code: str = "print(1)") -> te.TaskRequest:
    return request(session, run_python=tools_pb2.RunPythonRequest(code=code))


def install(session: str, package: str) -> te.TaskRequest:
    return request(session, pkg_install=tools_pb2.PkgInstallRequest(packages=[package]))


def spawn_interpreter(python: Path) -> float:
    """Time one start of the reference interpreter, spawn to wait."""
    start = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True, env={"PATH": "/usr/bin:/bin"})
    return time.perf_counter() - start


async def timed(case: Awaitable[object]) -> float:
    start = time.perf_counter()
    await case
    return time.perf_counter() - start


async def gap(seconds: float = 0.01) -> None:
    """Leave the idle gap that callers leave between calls."""
    await asyncio.sleep(seconds)
