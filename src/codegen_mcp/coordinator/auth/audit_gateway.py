"""A gateway whose every call is in the audit log, whichever face it came in by."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Any, Self

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.auth.trail import Outcome, Recorded, Trail, kept
from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.tool_facts import tool_of
from codegen_mcp.core.errors import NotFound, WorkerError
from codegen_mcp.core.ids import new_task_id
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.server.closing import closing

IDS = {
    "session_id": "session",
    "session_ids": "sessions",
    "task_id": "task",
    "checkpoint_id": "checkpoint",
    "artifact_id": "artifact",
    "path": "path",
}
"""Fields of messages that say what a call is about, and their names in a record."""
_FIELDS: dict[type[Message], list[tuple[str, str]]] = {}
"""Of ``IDS``, those that a kind of message has: to ask it for others costs an exception each."""
LOOK_AGAIN_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""When a task in the background is asked whether it has ended; the last one repeats."""


def looks(method: str) -> bool:
    """Whether a method only looks. An upload's address is asked for to change something."""
    name = method.partition("/")[2]
    return name.startswith(("Get", "List", "Download")) and name != "GetUploadURL"


class AuditGateway:
    """Implements ``base.Gateway`` before another one; an async context manager."""

    def __init__(self, inner: Gateway, trail: Trail) -> None:
        self._inner = inner
        self._trail = trail
        self._watchers = OwnedTasks()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._watchers.aclose()

    async def unary(self, principal: Principal, method: str, request: Message) -> Message:
        """Record, and pass on."""
        async with self._trail.call(principal, self._recorded(method, request)) as outcome:
            answer = await self._inner.unary(principal, method, request)
            self._answered(outcome, answer)
        return answer

    async def tasks(
        self,
        principal: Principal,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
    ) -> AsyncGenerator[tasks_pb.TaskResponse, None]:
        """Record, and pass on; the end goes out when it is recorded."""
        asked: Any = type(request)()
        asked.CopyFrom(request)
        detaches = False
        if isinstance(asked, tasks_pb.TaskRequest):
            asked.task_id = asked.task_id or new_task_id()
            detaches = asked.on_disconnect == tasks_pb.ON_DISCONNECT_DETACH
        last: tasks_pb.TaskResponse | None = None
        try:
            async with (
                self._trail.call(principal, self._recorded(method, asked)) as outcome,
                closing(self._inner.tasks(principal, method, asked)) as messages,
            ):
                async for message in messages:
                    outcome.bytes += message.ByteSize()
                    if message.WhichOneof("payload") in {"result", "error"}:
                        last = message
                        ending(outcome, message)
                    else:
                        yield message
        except (asyncio.CancelledError, GeneratorExit):
            if last is None and detaches:
                work = self._watch(principal, asked.session_id, asked.task_id)
                self._watchers.spawn(work, "audit-task-end")
            raise
        if last is not None:
            yield last

    async def _watch(self, principal: Principal, session_id: str, task_id: str) -> None:
        """Wait for the end of a task that nobody follows, and record it."""
        request = tasks_pb.StatusRequest(session_id=session_id, task_id=task_id)
        pauses = iter(LOOK_AGAIN_S)
        pause = 0.0
        while True:
            pause = next(pauses, pause)
            await asyncio.sleep(pause)
            try:
                answer = await self._inner.unary(principal, "TaskExecution/GetTaskStatus", request)
            except NotFound:
                facts: dict[str, Any] = {"who": principal.name, "status": "UNKNOWN"}
                break
            except WorkerError:
                continue
            assert isinstance(answer, tasks_pb.StatusResponse)
            if answer.state == "finished":
                facts = {
                    "who": principal.name,
                    "status": "OK",
                    "result": tasks_pb.TaskResult.Status.Name(answer.status),
                    "ended_by": common_pb2.EndedBy.Name(answer.ended_by),
                    "ms": answer.elapsed_ms,
                }
                break
        self._trail.end_of_task(task_id, {"session": session_id, **facts})

    async def upload(
        self, principal: Principal, chunks: AsyncIterator[files_pb.UploadChunk]
    ) -> files_pb.UploadSummary:
        """Record, and pass on; of the pieces, their digest and size."""
        first = await anext(aiter(chunks), files_pb.UploadChunk())
        sent, size = hashlib.sha256(), 0

        async def counted() -> AsyncIterator[files_pb.UploadChunk]:
            nonlocal size
            chunk = first
            while True:
                sent.update(chunk.data)
                size += len(chunk.data)
                yield chunk
                following = await anext(chunks, None)
                if following is None:
                    return
                chunk = following

        recorded = self._recorded("WorkspaceFiles/Upload", first.header)
        async with self._trail.call(principal, recorded) as outcome:
            answer = await self._inner.upload(principal, counted())
            self._answered(outcome, answer)
            outcome.note(data_bytes=size, data_sha256=sent.hexdigest())
        return answer

    async def download(
        self, principal: Principal, request: files_pb.DownloadRequest
    ) -> AsyncGenerator[files_pb.DownloadChunk, None]:
        """Record, and pass on."""
        recorded = self._recorded("WorkspaceFiles/Download", request)
        async with (
            self._trail.call(principal, recorded) as outcome,
            closing(self._inner.download(principal, request)) as chunks,
        ):
            async for chunk in chunks:
                outcome.bytes += len(chunk.data)
                yield chunk

    def _recorded(self, method: str, request: Message) -> Recorded:
        facts = ids_of(request)
        if isinstance(request, tasks_pb.TaskRequest):
            facts["tool"] = tool_of(request.typed_request)
        contents = None
        if self._trail.contents:
            contents = MessageToJson(request, preserving_proto_field_name=True, indent=None)
        return Recorded(
            face="grpc",
            name=method,
            arguments=request.SerializeToString(deterministic=True),
            facts=facts,
            looks=looks(method),
            contents=contents,
        )

    def _answered(self, outcome: Outcome, answer: Message) -> None:
        outcome.bytes = answer.ByteSize()
        outcome.note(**ids_of(answer))
        if self._trail.contents:
            text = MessageToJson(answer, preserving_proto_field_name=True, indent=None)
            outcome.facts["answer"] = kept(text)


def ids_of(message: Message) -> dict[str, Any]:
    """Return what it names."""
    found: dict[str, Any] = {}
    kind = type(message)
    fields = _FIELDS.get(kind)
    if fields is None:
        known = kind.DESCRIPTOR.fields_by_name
        fields = _FIELDS[kind] = [item for item in IDS.items() if item[0] in known]
    for name, shown in fields:
        if value := getattr(message, name):
            found[shown] = value if isinstance(value, str) else list(value)
    return found


def ending(outcome: Outcome, message: tasks_pb.TaskResponse) -> None:
    """Note how a task ended."""
    outcome.note(task=message.task_id)
    if message.WhichOneof("payload") == "error":
        outcome.status = message.error.code or "UNKNOWN"
        return
    result, facts = message.result, message.result.metadata
    outcome.note(
        result=tasks_pb.TaskResult.Status.Name(result.status),
        ended_by=common_pb2.EndedBy.Name(facts.ended_by),
        exit_code=facts.exit_code,
        ran_ms=facts.duration_ms,
        stdout_bytes=facts.stdout_bytes,
        stderr_bytes=facts.stderr_bytes,
        peak_memory_bytes=facts.peak_usage.memory_bytes,
    )
