"""What tests of the coordinator's view of workers have instead of workers and of a directory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NoReturn

from google.protobuf.message import Message

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.core.errors import Unavailable


class SilentLink:
    """Implements ``WorkerLink``: reaches nobody, and says whether it was closed."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.closed = 0

    @property
    def worker_id(self) -> str:
        """Of its owner."""
        return self.owner.worker_id

    @property
    def incarnation(self) -> int:
        """Of its owner."""
        return self.owner.incarnation

    async def unary(self, method: str, request: Message, *, epoch: int = 0) -> Message:
        """Raise."""
        self._lost()

    def tasks(
        self,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
        *,
        epoch: int = 0,
        admitted: Callable[[], None] | None = None,
    ) -> AsyncIterator[tasks_pb.TaskResponse]:
        """Raise."""
        self._lost()

    async def upload(
        self, chunks: AsyncIterator[files_pb.UploadChunk], *, epoch: int = 0
    ) -> files_pb.UploadSummary:
        """Raise."""
        self._lost()

    def download(
        self, request: files_pb.DownloadRequest, *, epoch: int = 0
    ) -> AsyncIterator[files_pb.DownloadChunk]:
        """Raise."""
        self._lost()

    async def close(self) -> None:
        """Count."""
        self.closed += 1

    def _lost(self) -> NoReturn:
        raise Unavailable(f"nobody is behind the link of {self.worker_id!r}", reason="LINK_LOST")
