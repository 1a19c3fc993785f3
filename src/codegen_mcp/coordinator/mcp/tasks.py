"""Tasks of the worker's tools: how they are named, started, and left to run by themselves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp.coordinator.mcp.call import Call
from codegen_mcp.coordinator.mcp.follow import Followed, follow
from codegen_mcp.coordinator.mcp.wire_tools import tool_request
from codegen_mcp.core.errors import NotFound

EXECUTE = "TaskExecution/ExecuteTask"
ATTACH = "TaskExecution/AttachTask"
_OURS = re.compile(r"(.+)\.[0-9a-f]{12}")
_POLL_S = 0.01


def new_task_id(session_id: str) -> str:
    """Make the handle of a task; it says by itself in which session it is."""
    return f"{session_id}.{token_hex(6)}"


def session_of(task_id: str) -> str:
    """Return the session in a handle of ours; empty for another's."""
    match = _OURS.fullmatch(task_id)
    return match[1] if match else ""


def task_request(
    session_id: str,
    tool: str,
    arguments: Mapping[str, Any],
    *,
    background: bool = False,
    allow_network: bool = False,
    allow_hosts: Sequence[str] = (),
    secrets: Sequence[str] = (),
) -> pb.TaskRequest:
    """Make the request of a new task."""
    return pb.TaskRequest(
        task_id=new_task_id(session_id),
        session_id=session_id,
        typed_request=tool_request(tool, arguments),
        on_disconnect=pb.ON_DISCONNECT_DETACH if background else pb.ON_DISCONNECT_CANCEL,
        context=pb.TaskContext(secrets=secrets),
        constraints=pb.ExecutionConstraints(allow_network=allow_network, allow_hosts=allow_hosts),
    )


async def run(call: Call, session_id: str, tool: str, arguments: Mapping[str, Any]) -> Followed:
    """Run a tool to its end."""
    return await follow(call, EXECUTE, task_request(session_id, tool, arguments))


async def start(call: Call, request: pb.TaskRequest) -> Followed:
    """Start a task that goes on by itself; returns once the worker has it, or it has ended.

    Raises:
        WorkerError: It was not taken.
    """
    reader = asyncio.create_task(follow(call, EXECUTE, request, until=lambda _: True))
    try:
        wait_s = _POLL_S
        while not reader.done() and not await _taken(call, request):
            await asyncio.wait([reader], timeout=wait_s)
            wait_s = min(wait_s * 2, 0.5)
        if reader.done():
            return reader.result()
        return Followed.empty(request.task_id, call.config.form_bytes)
    finally:
        reader.cancel()
        await asyncio.wait([reader])


async def _taken(call: Call, request: pb.TaskRequest) -> bool:
    try:
        await status(call, request.session_id, request.task_id)
    except NotFound:
        return False
    return True


async def status(call: Call, session_id: str, task_id: str) -> pb.StatusResponse:
    """Ask how a task is.

    Raises:
        NotFound: There is no such task, or no such session.
    """
    return await call.unary(
        "TaskExecution/GetTaskStatus",
        pb.StatusRequest(session_id=session_id, task_id=task_id),
        pb.StatusResponse,
    )
