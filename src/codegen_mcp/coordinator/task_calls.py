"""TaskExecution's unary calls, and which session a task is of where the caller does not say."""

from __future__ import annotations

from collections import OrderedDict

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.calls import SessionCalls
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.routes import Routes
from codegen_mcp.core.errors import NotFound, WorkerError

REMEMBERED = 100_000
SEARCHED = 200
"""Sessions of a principal that are asked for a task that is not remembered."""


class TaskFace:
    """Looks at and cancels the tasks of principals."""

    def __init__(self, routes: Routes, calls: SessionCalls) -> None:
        self._routes = routes
        self._calls = calls
        self._sessions: OrderedDict[tuple[str, str], str] = OrderedDict()

    def note(self, principal: Principal, task_id: str, session_id: str) -> None:
        """Remember where a task runs."""
        self._sessions[principal.name, task_id] = session_id
        while len(self._sessions) > REMEMBERED:
            self._sessions.popitem(last=False)

    async def session_of(self, principal: Principal, task_id: str, session_id: str) -> str:
        """The session that a call is about; of a task alone, among the principal's own only.

        Raises:
            NotFound: None of theirs has such a task.
        """
        if session_id:
            return session_id
        known = self._sessions.get((principal.name, task_id))
        if known is not None:
            return known
        rows = await self._routes.directory.sessions(principal=principal.name, limit=SEARCHED)
        for row in rows:
            link = self._routes.linked(row)
            if link is None:
                continue
            request = pb.StatusRequest(task_id=task_id, session_id=row.session_id)
            try:
                await link.unary("TaskExecution/GetTaskStatus", request, epoch=row.epoch)
            except WorkerError:
                continue  # not this one
            return row.session_id
        raise refusals.no_task(task_id)

    async def cancel(self, principal: Principal, request: pb.CancelRequest) -> pb.CancelResponse:
        """Stop a task."""
        asked = pb.CancelRequest()
        asked.CopyFrom(request)
        asked.session_id = await self.session_of(principal, asked.task_id, asked.session_id)
        answer = await self._calls.unary(
            principal, asked.session_id, "TaskExecution/CancelTask", asked
        )
        assert isinstance(answer, pb.CancelResponse)
        return answer

    async def status(self, principal: Principal, request: pb.StatusRequest) -> pb.StatusResponse:
        """A task as it is now."""
        asked = pb.StatusRequest()
        asked.CopyFrom(request)
        asked.session_id = await self.session_of(principal, asked.task_id, asked.session_id)
        try:
            answer = await self._calls.unary(
                principal, asked.session_id, "TaskExecution/GetTaskStatus", asked
            )
        except NotFound as error:
            if not request.session_id and refusals.is_gone(error):
                raise refusals.no_task(request.task_id) from error
            raise
        assert isinstance(answer, pb.StatusResponse)
        return answer
