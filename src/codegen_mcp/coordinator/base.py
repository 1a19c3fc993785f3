"""The coordinator's two faces inward: the gateway that callers use, the link to one worker.

Both speak the wire's messages, so that what a worker answers reaches the caller as it was, fields
that this version does not know included. Errors are those of ``core.errors``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from google.protobuf.message import Message

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.principal import Principal


class Gateway(Protocol):
    """Sessions of all workers for principals: every call is checked, routed and accounted.

    What belongs to another principal is NotFound, in the words used for what never was.
    """

    async def unary(self, principal: Principal, method: str, request: Message) -> Message:
        """Do one unary call, ``SessionManagement/CreateSession`` for example.

        Every unary method of SessionManagement, TaskExecution and ArtifactService.

        Raises:
            WorkerError: Of the worker (``RemoteError``, told on as it was), or of the gateway:
            NotFound, Full (no worker has room, or a quota; with retry_after_s), Unavailable,
            OutcomeUnknown (a worker was lost, and the call may have had its effect).
        """

    def tasks(
        self,
        principal: Principal,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
    ) -> AsyncIterator[tasks_pb.TaskResponse]:
        """``TaskExecution/ExecuteTask`` or ``TaskExecution/AttachTask``.

        Exactly one result or error is last, also when the worker is lost meanwhile: the code of
        that error is UNAVAILABLE with reason OUTCOME_UNKNOWN, unless the tool is idempotent and
        was done again. Closing the iterator early is a client that vanished.
        """

    async def upload(
        self, principal: Principal, chunks: AsyncIterator[files_pb.UploadChunk]
    ) -> files_pb.UploadSummary:
        """WorkspaceFiles/Upload."""

    def download(
        self, principal: Principal, request: files_pb.DownloadRequest
    ) -> AsyncIterator[files_pb.DownloadChunk]:
        """WorkspaceFiles/Download."""


class WorkerLink(Protocol):
    """One start of one worker, as the coordinator reaches it: dialled, or by its TaskStream.

    A link that is closed raises Unavailable (reason LINK_LOST) from every call under way and every
    later one; nothing that comes late gets through it.
    """

    @property
    def worker_id(self) -> str:
        """Whose link it is."""

    @property
    def incarnation(self) -> int:
        """Of the worker, as the directory numbered it."""

    async def unary(self, method: str, request: Message, *, epoch: int = 0) -> Message:
        """As of the gateway. ``epoch``: under which the session is held; 0 names no session.

        Raises:
            NotImplementedYet: The peer has no frame for this call.
        """

    def tasks(
        self,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
        *,
        epoch: int = 0,
        admitted: Callable[[], None] | None = None,
    ) -> AsyncIterator[tasks_pb.TaskResponse]:
        """As of the gateway.

        ``admitted`` is called once, when the worker has taken the task, or can no longer take one
        that is sent later before it: a session's tasks with a sequence reach it in order.
        """

    async def upload(
        self, chunks: AsyncIterator[files_pb.UploadChunk], *, epoch: int = 0
    ) -> files_pb.UploadSummary:
        """As of the gateway."""

    def download(
        self, request: files_pb.DownloadRequest, *, epoch: int = 0
    ) -> AsyncIterator[files_pb.DownloadChunk]:
        """As of the gateway."""

    async def close(self) -> None:
        """Let go; idempotent."""
