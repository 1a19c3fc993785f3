"""The streams of tasks: kept whole over broken links, and ended with one word when a worker dies.

A task reaches its worker under one id, whatever happens on the way: the worker runs it once and
answers a repeated request with what is recorded. So a call that broke is simply made again, to the
same start of the worker or to a later one that took its files over, and what was passed on before
is left out. Only where the session itself had to go back to a checkpoint nobody knows what the task
has done: then it is not run again, unless its tool may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import structlog

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.calls import SessionCalls
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.routes import Held, Routes
from codegen_mcp.coordinator.task_calls import TaskFace
from codegen_mcp.coordinator.task_listeners import Audiences, TaskTurns, Turn
from codegen_mcp.coordinator.tool_facts import ToolFacts
from codegen_mcp.core.errors import NotFound, NotImplementedYet, WorkerError
from codegen_mcp.core.ids import check_task_id, new_task_id
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.server.convert_tasks import task_error

log = structlog.get_logger()

EXECUTE, ATTACH = "TaskExecution/ExecuteTask", "TaskExecution/AttachTask"
LEFT = "the caller left"
LAST = frozenset({"result", "error"})
"""Payloads that end a stream."""


class Passed:
    """How much of a task's output the caller has already."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}

    def cut(self, message: pb.TaskResponse) -> pb.TaskResponse | None:
        """Leave out what was passed on before; None where that is all of it."""
        if message.WhichOneof("payload") != "log" or not message.log.data:
            return message
        entry = message.log
        end = entry.offset + len(entry.data)
        known = self.ends.get(entry.source, 0)
        if end <= known:
            return None
        self.ends[entry.source] = end
        if entry.offset < known:
            entry.data = entry.data[known - entry.offset :]
            entry.offset = known
            entry.message = entry.data.decode("utf-8", "replace")
        return message


class TaskStreams:
    """Runs and joins tasks for principals."""

    def __init__(
        self,
        routes: Routes,
        calls: SessionCalls,
        looks: TaskFace,
        tools: ToolFacts,
        owned: OwnedTasks,
    ) -> None:
        self._routes = routes
        self._calls = calls
        self._looks = looks
        self._tools = tools
        self._owned = owned
        self._turns = TaskTurns()
        self._audiences = Audiences()

    def execute(
        self, principal: Principal, request: pb.TaskRequest
    ) -> AsyncGenerator[pb.TaskResponse, None]:
        """Run a tool; yields what happens, and one result or error last."""
        asked = pb.TaskRequest()
        asked.CopyFrom(request)
        asked.task_id = check_task_id(request.task_id) if request.task_id else new_task_id()
        cancels = request.on_disconnect != pb.ON_DISCONNECT_DETACH
        asked.on_disconnect = pb.ON_DISCONNECT_DETACH
        return self._listen(principal, EXECUTE, asked, cancels=cancels)

    def attach(
        self, principal: Principal, request: pb.AttachTaskRequest
    ) -> AsyncGenerator[pb.TaskResponse, None]:
        """Join a task."""
        asked = pb.AttachTaskRequest()
        asked.CopyFrom(request)
        return self._listen(principal, ATTACH, asked, cancels=False)

    async def _listen(
        self,
        principal: Principal,
        method: str,
        request: pb.TaskRequest | pb.AttachTaskRequest,
        *,
        cancels: bool,
    ) -> AsyncGenerator[pb.TaskResponse, None]:
        """Follow the task as one of its listeners; the last one that leaves may cancel it."""
        if method == ATTACH and not request.session_id:
            request.session_id = await self._looks.session_of(principal, request.task_id, "")
        session_id, task_id = request.session_id, request.task_id
        self._looks.note(principal, task_id, session_id)
        turn = self._turns.turn(session_id)
        left = True
        policy = cancels
        try:
            with self._audiences.listening(session_id, task_id, cancels=cancels) as audience:
                policy = audience.cancels
                if method == EXECUTE:
                    await turn.wait()
                async with aclosing(self._attempts(principal, method, request, turn)) as messages:
                    async for message in messages:
                        left = message.WhichOneof("payload") not in LAST
                        yield message
        except WorkerError:
            left = False
            raise
        finally:
            turn.done()
            if left and policy and self._audiences.left_alone(session_id, task_id):
                self._owned.spawn(self._cancel(principal, session_id, task_id), "task-cancel")

    async def _cancel(self, principal: Principal, session_id: str, task_id: str) -> None:
        request = pb.CancelRequest(session_id=session_id, task_id=task_id, reason=LEFT)
        try:
            await self._calls.unary(principal, session_id, "TaskExecution/CancelTask", request)
        except WorkerError as error:
            log.info("task.not_cancelled", task_id=task_id, error=error.message)

    async def _attempts(
        self,
        principal: Principal,
        method: str,
        request: pb.TaskRequest | pb.AttachTaskRequest,
        turn: Turn,
    ) -> AsyncGenerator[pb.TaskResponse, None]:
        """Call until the task has its end, or nobody can say what it is."""
        session_id, task_id = request.session_id, request.task_id
        passed = Passed()
        sent: Held | None = None
        broken_at: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            try:
                held = await self._calls.held(principal, session_id)
                if held.restored:
                    yield restored(task_id, held.restored)
                if sent is not None and not await self._may_send(sent, held, method, request):
                    yield unknown(task_id, session_id)
                    return
            except WorkerError as lost:
                if sent is None:
                    raise
                # The task was under way: its stream has an end, whatever became of the session.
                yield unknown(task_id, session_id, lost)
                return
            tracked = isinstance(request, pb.TaskRequest) and request.sequence > 0
            if not tracked:
                turn.done()
            stream = held.link.tasks(
                method,
                request,
                epoch=held.row.epoch,
                admitted=turn.done if tracked else None,
            )
            try:
                async with aclosing(cast("AsyncGenerator[pb.TaskResponse, None]", stream)):
                    async for message in stream:
                        broken_at = None
                        last = message.WhichOneof("payload") in LAST
                        if (rest := passed.cut(message)) is not None:
                            yield rest
                        if last:
                            return
                error: WorkerError = refusals.ended_early(held.owner.worker_id)
            except WorkerError as failure:
                error = failure
            if refusals.is_broken(error) and refusals.was_sent(error):
                sent = sent or held
            broken_at = broken_at or loop.time()
            try:
                await self._calls.after(held, error, uses=True)
                if loop.time() - broken_at >= self._routes.config.wait_s:
                    raise refusals.worker_away(session_id, self._routes.config.wait_s)
            except WorkerError as final:
                if sent is None:
                    raise
                yield unknown(task_id, session_id, final)
                return
            if isinstance(request, pb.AttachTaskRequest):
                request.stdout_offset = max(request.stdout_offset, passed.ends.get("stdout", 0))
                request.stderr_offset = max(request.stderr_offset, passed.ends.get("stderr", 0))

    async def _may_send(
        self, sent: Held, held: Held, method: str, request: pb.TaskRequest | pb.AttachTaskRequest
    ) -> bool:
        """Whether a task that was sent once can be sent again without running twice."""
        if self._routes.same_files(sent.row, held.row):
            return True  # the same files, and their record of it
        status = pb.StatusRequest(task_id=request.task_id, session_id=request.session_id)
        try:
            await held.link.unary("TaskExecution/GetTaskStatus", status, epoch=held.row.epoch)
            return True  # the checkpoint has its record
        except NotFound:
            pass
        except NotImplementedYet:
            return False
        return isinstance(request, pb.TaskRequest) and await self._tools.may_repeat(held, request)


def restored(task_id: str, text: str) -> pb.TaskResponse:
    """Say that the session was brought back for this task."""
    update = pb.ProgressUpdate(percent_complete=0, stage="restored", message=text)
    return pb.TaskResponse(task_id=task_id, progress=update)


def unknown(task_id: str, session_id: str, why: WorkerError | None = None) -> pb.TaskResponse:
    """Return the end of a task that may have run, and whose end nobody knows."""
    error = refusals.outcome_unknown(f"task {task_id!r}", session_id, why)
    return pb.TaskResponse(task_id=task_id, error=task_error(error))
