"""A gateway that lets each principal use only what its quotas allow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from google.protobuf.message import Message

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.auth.quotas import TASK_RETRY_S, QuotaLedger, TaskKey, exceeded
from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.core.errors import NotFound, WorkerError
from codegen_mcp.core.ids import new_task_id
from codegen_mcp.server.closing import closing

FINISHED = "finished"


class QuotaGateway:
    """Implements ``base.Gateway`` before another one. Sessions are the directory's to count."""

    def __init__(self, inner: Gateway, ledger: QuotaLedger) -> None:
        self._inner = inner
        self._ledger = ledger

    async def unary(self, principal: Principal, method: str, request: Message) -> Message:
        """Pay, and pass on."""
        with self._ledger.call(principal):
            return await self._inner.unary(principal, method, request)

    def tasks(
        self,
        principal: Principal,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
    ) -> AsyncIterator[tasks_pb.TaskResponse]:
        """Pay, take a place for a new task, and pass on."""
        self._ledger.pay(principal)
        if not isinstance(request, tasks_pb.TaskRequest) or not principal.quotas.tasks:
            return self._inner.tasks(principal, method, request)
        return self._counted(principal, method, request)

    async def _counted(
        self, principal: Principal, method: str, request: tasks_pb.TaskRequest
    ) -> AsyncGenerator[tasks_pb.TaskResponse, None]:
        asked = tasks_pb.TaskRequest()
        asked.CopyFrom(request)
        asked.task_id = asked.task_id or new_task_id()
        key = (asked.session_id, asked.task_id)
        await self._make_room(principal, key)
        self._ledger.listen(principal, key)
        ended = False
        try:
            async with closing(self._inner.tasks(principal, method, asked)) as messages:
                async for message in messages:
                    if message.WhichOneof("payload") in {"result", "error"}:
                        ended = True
                        self._ledger.ended(principal, key)
                    yield message
        except WorkerError:
            ended = True
            self._ledger.ended(principal, key)
            raise
        finally:
            if not ended:
                self._ledger.leave(principal, key)

    async def _make_room(self, principal: Principal, key: TaskKey) -> None:
        """Look whether tasks that were left have ended, once there is no place.

        Raises:
            Full: There is none; reason QUOTA_EXCEEDED.
        """
        if self._ledger.has_room(principal, key):
            return
        for session_id, task_id in self._ledger.left_tasks(principal):
            if not await self._runs(principal, session_id, task_id):
                self._ledger.ended(principal, (session_id, task_id))
                break
        if not self._ledger.has_room(principal, key):
            bound = principal.quotas.tasks
            raise exceeded(
                "tasks",
                bound,
                f"{bound} tasks are under way, all that {principal.name!r} may have at once; wait "
                "for one, or cancel it",
                retry_after_s=TASK_RETRY_S,
            )

    async def _runs(self, principal: Principal, session_id: str, task_id: str) -> bool:
        request = tasks_pb.StatusRequest(session_id=session_id, task_id=task_id)
        try:
            answer = await self._inner.unary(principal, "TaskExecution/GetTaskStatus", request)
        except NotFound:
            return False
        except WorkerError:
            return True  # it cannot be told now
        assert isinstance(answer, tasks_pb.StatusResponse)
        return answer.state != FINISHED

    async def upload(
        self, principal: Principal, chunks: AsyncIterator[files_pb.UploadChunk]
    ) -> files_pb.UploadSummary:
        """Pay, and pass on."""
        with self._ledger.call(principal):
            return await self._inner.upload(principal, chunks)

    async def download(
        self, principal: Principal, request: files_pb.DownloadRequest
    ) -> AsyncGenerator[files_pb.DownloadChunk, None]:
        """Pay, and pass on."""
        self._ledger.pay(principal)
        async with closing(self._inner.download(principal, request)) as chunks:
            async for chunk in chunks:
                yield chunk
