"""A gateway over one worker's address: the smallest thing that the MCP face can stand on.

Who owns what is kept in memory, so it forgets with the process. What there is no owner for is
nobody's: NotFound.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from google.protobuf.message import Message
from grpc import aio

from codegen_mcp._proto.codegen.v1 import (
    artifact_service_pb2_grpc,
    session_management_pb2_grpc,
    task_execution_pb2_grpc,
    workspace_files_pb2_grpc,
)
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.adhoc import ADHOC_KEY
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.remote_errors import from_rpc_error
from codegen_mcp.core.checkpoint import parse_checkpoint_id
from codegen_mcp.core.errors import NotFound


class OneWorkerGateway:
    """Implements ``coordinator.base.Gateway``. An async context manager: it owns its channel."""

    def __init__(self, address: str) -> None:
        self._channel = aio.insecure_channel(address)
        self._services: dict[str, Any] = {
            "SessionManagement": session_management_pb2_grpc.SessionManagementStub(self._channel),
            "TaskExecution": task_execution_pb2_grpc.TaskExecutionStub(self._channel),
            "ArtifactService": artifact_service_pb2_grpc.ArtifactServiceStub(self._channel),
            "WorkspaceFiles": workspace_files_pb2_grpc.WorkspaceFilesStub(self._channel),
        }
        self._owners: dict[str, str] = {}

    async def __aenter__(self) -> OneWorkerGateway:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def unary(self, principal: Principal, method: str, request: Message) -> Message:
        """Check the session, call, and note whose the new ones are."""
        self._check(principal, request)
        if isinstance(request, sessions_pb.CreateSessionRequest):
            request.metadata.pop(ADHOC_KEY, None)
        service, _, name = method.partition("/")
        try:
            answer: Any = await getattr(self._services[service], name)(request)
        except aio.AioRpcError as error:
            raise from_rpc_error(error, "the worker") from None
        for made in (getattr(answer, "session_id", ""), *getattr(answer, "session_ids", ())):
            self._owners.setdefault(made, principal.name)
        for field in ("sessions", "artifacts"):
            listed = list(getattr(answer, field, ()))
            if listed and hasattr(listed[0], "session_id"):
                del getattr(answer, field)[:]
                getattr(answer, field).extend(one for one in listed if self._owns(principal, one))
                if len(listed) == 1 and not getattr(answer, field) and _names_one(request):
                    raise NotFound("there is no such artifact")
        assert isinstance(answer, Message)
        return answer

    async def tasks(
        self,
        principal: Principal,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
    ) -> AsyncIterator[tasks_pb.TaskResponse]:
        """Stream; leaving early cancels the call."""
        self._check(principal, request)
        call = getattr(self._services["TaskExecution"], method.partition("/")[2])(request)
        try:
            async for message in call:
                yield message
        except aio.AioRpcError as error:
            raise from_rpc_error(error, "the worker") from None
        finally:
            call.cancel()

    async def upload(
        self, principal: Principal, chunks: AsyncIterator[files_pb.UploadChunk]
    ) -> files_pb.UploadSummary:
        """Pass the pieces on; the first names the session."""

        async def checked() -> AsyncIterator[files_pb.UploadChunk]:
            async for chunk in chunks:
                if chunk.HasField("header"):
                    self._check(principal, chunk.header)
                yield chunk

        try:
            summary = await self._services["WorkspaceFiles"].Upload(checked())
        except aio.AioRpcError as error:
            raise from_rpc_error(error, "the worker") from None
        assert isinstance(summary, files_pb.UploadSummary)
        return summary

    async def download(
        self, principal: Principal, request: files_pb.DownloadRequest
    ) -> AsyncIterator[files_pb.DownloadChunk]:
        """Pass the pieces on."""
        self._check(principal, request)
        call = self._services["WorkspaceFiles"].Download(request)
        try:
            async for chunk in call:
                yield chunk
        except aio.AioRpcError as error:
            raise from_rpc_error(error, "the worker") from None
        finally:
            call.cancel()

    def _check(self, principal: Principal, request: Any) -> None:
        session_id = getattr(request, "session_id", "")
        checkpoint_id = getattr(request, "checkpoint_id", "")
        if session_id and not isinstance(request, sessions_pb.CreateSessionRequest):
            self._check_owner(principal, session_id)
        if checkpoint_id:
            self._check_owner(principal, parse_checkpoint_id(checkpoint_id).session_id)

    def _check_owner(self, principal: Principal, session_id: str) -> None:
        if self._owners.get(session_id) != principal.name:
            raise NotFound(f"there is no session {session_id!r}", reason="SESSION_NOT_FOUND")

    def _owns(self, principal: Principal, one: Any) -> bool:
        return self._owners.get(one.session_id) == principal.name


def _names_one(request: Message) -> bool:
    return bool(getattr(request, "artifact_id", ""))
