"""A link to the worker in this very process: its handlers are called, nothing is dialled.

Calls pass the same admission, gate and error table as over the network; a message is copied where
the wire would have made another of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar, cast

from google.protobuf.message import Message
from grpc import StatusCode

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.methods import TASKS
from codegen_mcp.coordinator.remote_errors import LinkLost, from_status
from codegen_mcp.server.interceptors import CALL_REQUEST_ID
from codegen_mcp.server.local_services import LocalServices, Refused

T = TypeVar("T")
M = TypeVar("M", bound=Message)

CODES = {code.value[0]: code for code in StatusCode}
AHEAD = 16
"""Messages that a handler may write before its reader has taken them."""


class LocalLink:
    """Implements ``base.WorkerLink`` over a worker's own services."""

    def __init__(self, owner: Owner, services: LocalServices) -> None:
        """Make it.

        Args:
            owner: The start of the worker that it leads to.
            services: Of that worker.
        """
        self._owner = owner
        self._services = services
        self._closed = False
        self._working: set[asyncio.Task[Message]] = set()

    @property
    def worker_id(self) -> str:
        """Whose link it is."""
        return self._owner.worker_id

    @property
    def incarnation(self) -> int:
        """Of the worker's start."""
        return self._owner.incarnation

    async def unary(self, method: str, request: Message, *, epoch: int = 0) -> Message:
        """Do one unary call."""
        work = self._start(method, _copy(request), epoch, _Pipe())
        return await self._end_of(work)

    def tasks(
        self,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
        *,
        epoch: int = 0,
        admitted: Callable[[], None] | None = None,
    ) -> AsyncGenerator[tasks_pb.TaskResponse, None]:
        """Run or join a task; leaving early cancels the call, not the task's own policy."""
        assert method in TASKS
        asked = _copy(request)
        return self._messages(method, asked, epoch, _Pipe(admitted), tasks_pb.TaskResponse)

    async def upload(
        self, chunks: AsyncIterator[files_pb.UploadChunk], *, epoch: int = 0
    ) -> files_pb.UploadSummary:
        """Send a file."""
        work = self._start("WorkspaceFiles/Upload", chunks, epoch, _Pipe())
        return cast("files_pb.UploadSummary", await self._end_of(work))

    def download(
        self, request: files_pb.DownloadRequest, *, epoch: int = 0
    ) -> AsyncGenerator[files_pb.DownloadChunk, None]:
        """Fetch a file."""
        method = "WorkspaceFiles/Download"
        return self._messages(method, _copy(request), epoch, _Pipe(), files_pb.DownloadChunk)

    async def close(self) -> None:
        """End every call under way with LinkLost; later ones too."""
        self._closed = True
        working = list(self._working)
        for work in working:
            work.cancel()
        if working:
            await asyncio.wait(working)

    def _start(self, name: str, request: object, epoch: int, pipe: _Pipe) -> asyncio.Task[Message]:
        """Call a handler in a task of its own, with a log context of its own."""
        if self._closed:
            raise self._lost(sent=False)
        call: Coroutine[Any, Any, Message] = self._services.call(
            self._services.find(name),
            request,
            write=pipe.write,
            epoch=epoch,
            request_id=CALL_REQUEST_ID.get(),
            admitted=pipe.admit,
        )
        work = asyncio.create_task(call, name="local-call")
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        work.add_done_callback(pipe.end)
        return work

    async def _end_of(self, work: asyncio.Task[Message]) -> Message:
        try:
            await asyncio.wait([work])
        finally:
            await _ended(work)
        return self._result(work)

    async def _messages(
        self, method: str, request: object, epoch: int, pipe: _Pipe, kind: type[M]
    ) -> AsyncGenerator[M, None]:
        work = self._start(method, request, epoch, pipe)
        try:
            while (data := await pipe.read()) is not None:
                yield kind.FromString(data)
            yield cast("M", self._result(work))
        finally:
            await _ended(work)

    def _result(self, work: asyncio.Task[Message]) -> Message:
        if self._closed or work.cancelled():
            raise self._lost()
        try:
            return work.result()
        except Refused as refused:
            status = refused.status
            code = CODES.get(status.code, StatusCode.UNKNOWN)
            raise from_status(code, status.message, status, self.worker_id) from None

    def _lost(self, *, sent: bool = True) -> LinkLost:
        return LinkLost(f"worker {self.worker_id!r} has ended", sent=sent)


class _Pipe:
    """What a handler writes, in order, and a little ahead of who reads it."""

    def __init__(self, admitted: Callable[[], None] | None = None) -> None:
        self._admitted = admitted
        self._parts: deque[bytes] = deque()
        self._ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    def admit(self) -> None:
        """The handler has taken the call, or can no longer take one behind it."""
        admitted, self._admitted = self._admitted, None
        if admitted is not None:
            admitted()

    async def write(self, data: bytes) -> None:
        """Take a message; waits for its reader where that is far behind."""
        self.admit()
        while len(self._parts) >= AHEAD:
            self._room.clear()
            await self._room.wait()
        self._parts.append(data)
        self._news.set()

    def end(self, _: object) -> None:
        """Nothing comes after this."""
        self.admit()
        self._ended = True
        self._news.set()

    async def read(self) -> bytes | None:
        """Take the next message; None at the end."""
        while not self._parts:
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        self._room.set()
        return self._parts.popleft()


def _copy(request: M) -> M:
    made = type(request)()
    made.CopyFrom(request)
    return made


async def _ended(work: asyncio.Task[Message]) -> None:
    """Cancel a call that nobody waits for any more, and wait for its cleanup."""
    if not work.done():
        work.cancel()
        await asyncio.wait([work])
