"""Follow one task's stream to its end: live words on the way, head and tail of what it printed."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp.coordinator.mcp.budget import HeadTail
from codegen_mcp.coordinator.mcp.call import Call
from codegen_mcp.coordinator.mcp.wire_tools import tool_answer
from codegen_mcp.core import errors
from codegen_mcp.server.closing import closing

KINDS: dict[str, type[errors.WorkerError]] = {
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "NOT_FOUND": errors.NotFound,
    "ALREADY_EXISTS": errors.AlreadyExists,
    "FAILED_PRECONDITION": errors.WrongState,
    "ABORTED": errors.Conflict,
    "RESOURCE_EXHAUSTED": errors.LimitExceeded,
    "UNIMPLEMENTED": errors.NotImplementedYet,
    "UNAVAILABLE": errors.Unavailable,
    "CANCELLED": errors.Cancelled,
    "DATA_LOSS": errors.Corrupt,
    "PERMISSION_DENIED": errors.Forbidden,
    "UNAUTHENTICATED": errors.Unauthenticated,
}
"""Code of a TaskError to what is raised."""


@dataclass(slots=True)
class Followed:
    """What a stream brought."""

    stdout: HeadTail
    stderr: HeadTail
    task_id: str = ""
    restored: bool = False
    """The session had expired and was restored for this task."""
    result: pb.TaskResult | None = None
    """None while it has not ended, and where ``error`` is set."""
    error: pb.TaskError | None = None

    @classmethod
    def empty(cls, task_id: str, keep_bytes: int) -> Followed:
        """Nothing was read yet."""
        return cls(HeadTail(keep_bytes), HeadTail(keep_bytes), task_id)

    @property
    def finished(self) -> bool:
        """Whether the task has ended."""
        return self.result is not None or self.error is not None

    @property
    def answer(self) -> dict[str, Any]:
        """The tool's answer as plain data; empty where there is none."""
        return {} if self.result is None else tool_answer(self.result.typed_response)

    def check(self) -> pb.TaskResult:
        """Return the result.

        Raises:
            WorkerError: The tool could not do its work.
        """
        if self.error is not None:
            raise task_error(self.error)
        assert self.result is not None
        return self.result


async def follow(
    call: Call,
    method: str,
    request: pb.TaskRequest | pb.AttachTaskRequest,
    *,
    until: Callable[[pb.TaskResponse], bool] | None = None,
    into: Followed | None = None,
) -> Followed:
    """Read the stream; leaving early lets the task go on or cancels it, as it was started.

    Args:
        call: On whose behalf.
        method: ``TaskExecution/ExecuteTask`` or ``TaskExecution/AttachTask``.
        request: Its request.
        until: Stop after the first message for which this is true.
        into: Where to collect; for a caller that may be stopped and wants what there is.

    Raises:
        WorkerError: The call failed. A tool that failed is in ``Followed.error``.
    """
    got = into or Followed.empty("", call.config.form_bytes)
    decoders = {
        name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")
    }
    stream = call.gateway.tasks(call.principal, method, request)
    async with closing(stream) as messages:
        async for message in messages:
            got.task_id = message.task_id or got.task_id
            kind = message.WhichOneof("payload")
            if kind == "log":
                data = message.log.data or message.log.message.encode("utf-8", "replace")
                source = "stderr" if message.log.source == "stderr" else "stdout"
                (got.stderr if source == "stderr" else got.stdout).add(data)
                call.progress.output(decoders[source].decode(data))
            elif kind == "progress":
                got.restored |= message.progress.stage == "restored"
                call.progress.stage(_words(message.progress))
            elif kind == "result":
                got.result = message.result
            elif kind == "error":
                got.error = message.error
            if got.finished or (until is not None and until(message)):
                return got
    if not got.finished:
        raise errors.Unavailable(
            f"the stream of task {got.task_id!r} ended without a result; ask task_result for it"
        )
    return got


async def restore_facts(call: Call, session_id: str) -> tuple[str, str]:
    """Ask a session that was just restored for (checkpoint, what was lost)."""
    status = await call.unary(
        "SessionManagement/GetSessionStatus",
        sessions_pb.SessionStatusRequest(session_id=session_id),
        sessions_pb.SessionStatusResponse,
    )
    return status.restored_from, status.lost


def task_error(error: pb.TaskError) -> errors.WorkerError:
    """Return the error that ended a task."""
    try:
        details = json.loads(error.details) if error.details else {}
    except ValueError:
        details = {}
    retry_ms = details.get("retry_after_ms")
    kind = KINDS.get(error.code, errors.WorkerError)
    if kind is errors.LimitExceeded and retry_ms is not None:
        kind = errors.Full
    facts = details.get("metadata")
    return kind(
        error.message,
        reason=str(details.get("reason") or kind.reason),
        retry_after_s=None if retry_ms is None else retry_ms / 1000,
        metadata={str(k): str(v) for k, v in facts.items()} if isinstance(facts, dict) else None,
    )


def _words(update: pb.ProgressUpdate) -> str:
    percent = f" ({update.percent_complete} %)" if update.percent_complete else ""
    said = f"{update.stage}: {update.message}" if update.stage else update.message
    return f"{said}{percent}"
