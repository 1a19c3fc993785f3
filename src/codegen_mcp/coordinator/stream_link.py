"""A link to a worker that cannot be dialled: calls and tasks over the TaskStream that it opened.

What a call, a task or a file has on its way is bounded by credit, each for itself, so that a caller
who does not read stops nothing but his own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.methods import UNARY
from codegen_mcp.coordinator.remote_errors import LinkBroken
from codegen_mcp.coordinator.stream_channel import Frame, StreamChannel, Write
from codegen_mcp.coordinator.stream_errors import from_bytes, from_stream_error
from codegen_mcp.coordinator.stream_inbox import WINDOW_BYTES, Inbox
from codegen_mcp.coordinator.stream_operations import (
    FRAMES,
    Level,
    create_frame,
    no_frame,
    operation_answer,
)
from codegen_mcp.core.errors import NotImplementedYet, WorkerError
from codegen_mcp.server.interceptors import CALL_REQUEST_ID
from codegen_mcp.server.stream_flow import Credit

M = TypeVar("M", bound=Message)

CREATE_S = 60.0
"""How long a peer that numbers no calls may take for a session; then its stream is broken, for
nobody could tell its answer from that to the next."""
REGRANT_BYTES = WINDOW_BYTES // 4
"""So much was taken: then it is granted again."""


class StreamLink:
    """Implements ``base.WorkerLink``. ``serve`` carries it for as long as the stream lasts."""

    def __init__(self, owner: Owner, channel: StreamChannel, *, create_s: float = CREATE_S) -> None:
        """Make it; calls wait until the channel is served.

        Args:
            owner: The start of the worker at the other end.
            channel: The stream.
            create_s: See ``CREATE_S``.
        """
        self._owner = owner
        self._channel = channel
        self._create_s = create_s
        self._creating = asyncio.Lock()

    @property
    def worker_id(self) -> str:
        """Whose link it is."""
        return self._owner.worker_id

    @property
    def incarnation(self) -> int:
        """Of the worker's start."""
        return self._owner.incarnation

    @property
    def open(self) -> bool:
        """Whether calls may still be answered over it."""
        return self._channel.open

    async def serve(self, frames: AsyncIterator[Frame], write: Write) -> None:
        """As of the channel."""
        await self._channel.serve(frames, write)

    async def close(self) -> None:
        """End every call under way with LinkLost; later ones too."""
        self._channel.close()

    # ---- unary calls

    async def unary(self, method: str, request: Message, *, epoch: int = 0) -> Message:
        """Do one unary call."""
        level = self._channel.level
        if method not in UNARY:
            raise NotImplementedYet(f"there is no method {method!r}")
        if level is Level.CALLS:
            return await self._call(method, request, epoch)
        if isinstance(request, sessions_pb.CreateSessionRequest):
            return await self._create(request)
        if level is Level.HELLO and isinstance(request, tasks_pb.CancelRequest):
            return await self._cancel(request, epoch)
        if level is Level.HELLO and method in FRAMES:
            return await self._operate(method, request, epoch)
        raise no_frame(method, self.worker_id, level)

    async def _call(self, method: str, request: Message, epoch: int) -> Message:
        number = self._channel.number("c")
        call = pb.StreamCall(
            call_id=number,
            method=method,
            request=request.SerializeToString(),
            epoch=epoch,
            request_id=CALL_REQUEST_ID.get(),
        )
        with self._channel.answered(number) as answer:
            await self._channel.put(Frame(call=call))
            result: pb.StreamCallResult = await answer
        if result.status:
            raise from_bytes(result.status, self.worker_id)
        return self._read(UNARY[method].response, result.response)

    async def _operate(self, method: str, request: Message, epoch: int) -> Message:
        number = self._channel.number("o")
        with self._channel.answered(number) as answer:
            await self._channel.put(FRAMES[method](request, number, epoch))
            result: pb.SessionOperationResult = await answer
        if result.HasField("error"):
            raise from_stream_error(result.error, self.worker_id)
        return operation_answer(method, result, self.worker_id)

    async def _create(self, request: sessions_pb.CreateSessionRequest) -> Message:
        """Make a session, one at a time: answers have no number, and may name another id."""
        channel, frame = self._channel, create_frame(request, self.worker_id)
        async with self._creating:
            answered = channel.created = asyncio.get_running_loop().create_future()
            try:
                await channel.put(Frame(session_create=frame))
                async with asyncio.timeout(self._create_s):
                    answer = await answered
            except TimeoutError:
                raise LinkBroken(f"worker {self.worker_id!r} makes no session") from None
            finally:
                channel.created = None
                if not answered.done() or answered.cancelled():
                    channel.close()  # its answer may still come, and would be taken for another's
        if not answer.success:
            told = pb.TaskStreamError(code="UNAVAILABLE", message=answer.error[:1000])
            raise from_stream_error(told, self.worker_id)
        return sessions_pb.CreateSessionResponse(
            session_id=answer.session_id or request.session_id,
            worker_id=self.worker_id,
            state=common_pb2.SESSION_STATE_READY,
            metadata=answer.metadata,
        )

    async def _cancel(self, request: tasks_pb.CancelRequest, epoch: int) -> Message:
        """Ask for it; the task's own stream tells its end."""
        running = self._channel.is_listening(request.task_id)
        frame = pb.TaskCancel(
            task_id=request.task_id,
            session_id=request.session_id,
            reason=request.reason,
            epoch=epoch,
        )
        await self._channel.put(Frame(cancel=frame))
        return tasks_pb.CancelResponse(cancelled=running, state="running" if running else "")

    # ---- tasks

    async def tasks(
        self,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
        *,
        epoch: int = 0,
        admitted: Callable[[], None] | None = None,
    ) -> AsyncGenerator[tasks_pb.TaskResponse, None]:
        """Run or join a task."""
        if isinstance(request, tasks_pb.AttachTaskRequest):
            async for answer in self._parts(method, request, tasks_pb.TaskResponse, epoch):
                yield answer
            return
        channel = self._channel
        assignment = pb.TaskAssignment.FromString(request.SerializeToString())
        assignment.epoch = epoch
        assignment.task_id = assignment.task_id or f"task_{secrets.token_hex(16)}"
        numbered = channel.level is Level.CALLS
        if numbered:
            assignment.stream_id = channel.number("s")
            assignment.credit_bytes = WINDOW_BYTES
            assignment.request_id = CALL_REQUEST_ID.get()
        key = assignment.stream_id or assignment.task_id
        followed, over, taken = channel.is_listening(key), False, 0
        with channel.listening(key) as inbox:
            try:
                if not followed:  # a peer that numbers no streams answers each task once
                    await channel.put(Frame(assignment=assignment))
                if admitted is not None:
                    admitted()  # the worker takes those of a session in the order of the stream
                while not over:
                    answer, size = await inbox.get()
                    over = answer.WhichOneof("payload") in {"result", "error"}
                    if over and inbox.omitted:
                        yield omitted(assignment.task_id, inbox.omitted)
                    yield self._response(answer)
                    taken = self._regrant(key, taken + size) if numbered else 0
            except WorkerError:
                over = True
                raise
            finally:
                if not over:
                    self._leave(assignment)

    def _leave(self, assignment: pb.TaskAssignment) -> None:
        """The caller has left; what that means for the task is the assignment's to say."""
        if assignment.stream_id:
            self._channel.put_now(Frame(leave=pb.StreamLeave(stream_id=assignment.stream_id)))
        elif (
            self._channel.level is Level.HELLO
            and assignment.on_disconnect != tasks_pb.ON_DISCONNECT_DETACH
        ):
            cancel = pb.TaskCancel(
                task_id=assignment.task_id,
                session_id=assignment.session_id,
                reason="the caller left",
                epoch=assignment.epoch,
            )
            self._channel.put_now(Frame(cancel=cancel))

    def _response(self, answer: pb.TaskStreamResponse) -> tasks_pb.TaskResponse:
        """Return it as ExecuteTask answers.

        Raises:
            WorkerError: The assignment was refused: there is no task.
        """
        if answer.HasField("error") and answer.error.status:
            raise from_bytes(answer.error.status, self.worker_id)
        answer.ClearField("stream_id")
        if answer.HasField("result"):
            answer.result.ClearField("sequence")
            answer.result.ClearField("session_metadata")
        return self._read(tasks_pb.TaskResponse, answer.SerializeToString())

    def _regrant(self, stream_id: str, taken: int) -> int:
        """Give credit for what was taken, in larger pieces; what is left to be given."""
        if taken < REGRANT_BYTES:
            return taken
        grant = pb.TaskFlowCredit(stream_id=stream_id, bytes=taken)
        self._channel.put_now(Frame(credit=grant))
        return 0

    # ---- streams

    async def upload(
        self, chunks: AsyncIterator[files_pb.UploadChunk], *, epoch: int = 0
    ) -> files_pb.UploadSummary:
        """Send a file."""
        number = self._channel.number("s")
        async with self._opened("WorkspaceFiles/Upload", number, epoch) as inbox:
            with self._channel.granted(number) as credit:
                sending = asyncio.ensure_future(self._send_chunks(number, chunks, credit))
                answering = asyncio.ensure_future(self._only_answer(inbox))
                both = (sending, answering)
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                    if not answering.done():
                        sending.result()  # the caller's own stream may have failed
                    return self._read(files_pb.UploadSummary, await answering)
                finally:
                    for work in both:
                        work.cancel()
                    await asyncio.gather(*both, return_exceptions=True)

    async def _send_chunks(
        self, number: str, chunks: AsyncIterator[files_pb.UploadChunk], credit: Credit
    ) -> None:
        async for chunk in chunks:
            data = chunk.SerializeToString()
            await credit.take(len(data))
            await self._channel.put(Frame(part=pb.StreamPart(stream_id=number, message=data)))
        await self._channel.put(Frame(part=pb.StreamPart(stream_id=number, end=True)))

    async def _only_answer(self, inbox: Inbox[pb.StreamPart]) -> bytes:
        """Return the one message of an answer."""
        data = b""
        while (part := await self._next_part(inbox)) is not None:
            data = part.message
        return data

    async def _next_part(self, inbox: Inbox[pb.StreamPart]) -> pb.StreamPart | None:
        """Return the next message; None at the end.

        Raises:
            WorkerError: The call ended with a status.
        """
        part, _ = await inbox.get()
        if not part.end:
            return part
        inbox.over = True
        if part.status:
            raise from_bytes(part.status, self.worker_id)
        return None

    async def download(
        self, request: files_pb.DownloadRequest, *, epoch: int = 0
    ) -> AsyncGenerator[files_pb.DownloadChunk, None]:
        """Fetch a file."""
        method = "WorkspaceFiles/Download"
        async for chunk in self._parts(method, request, files_pb.DownloadChunk, epoch):
            yield chunk

    async def _parts(
        self, method: str, request: Message, answer: type[M], epoch: int
    ) -> AsyncGenerator[M, None]:
        """Do a call with one request and a stream of answers."""
        number = self._channel.number("s")
        asked = pb.StreamPart(stream_id=number, message=request.SerializeToString())
        async with self._opened(method, number, epoch) as inbox:
            await self._channel.put(Frame(part=asked))
            await self._channel.put(Frame(part=pb.StreamPart(stream_id=number, end=True)))
            taken = 0
            while (part := await self._next_part(inbox)) is not None:
                yield self._read(answer, part.message)
                taken = self._regrant(number, taken + part.ByteSize())

    @asynccontextmanager
    async def _opened(
        self, method: str, number: str, epoch: int
    ) -> AsyncGenerator[Inbox[pb.StreamPart], None]:
        """Open a stream; the worker is told when it is left before its end."""
        channel = self._channel
        if channel.level is not Level.CALLS:
            raise no_frame(method, self.worker_id, channel.level)
        opening = pb.StreamOpen(
            stream_id=number,
            method=method,
            epoch=epoch,
            request_id=CALL_REQUEST_ID.get(),
            credit_bytes=WINDOW_BYTES,
        )
        with channel.listening(number) as inbox:
            try:
                await channel.put(Frame(open=opening))
                yield inbox
            finally:
                if not inbox.over:
                    channel.put_now(Frame(leave=pb.StreamLeave(stream_id=number)))

    def _read(self, kind: type[M], data: bytes) -> M:
        try:
            return kind.FromString(data)
        except DecodeError:
            raise WorkerError(
                f"worker {self.worker_id!r} answered with what is no {kind.DESCRIPTOR.name}"
            ) from None


def omitted(task_id: str, messages: int) -> tasks_pb.TaskResponse:
    """Say that a reader was too slow for a worker that knows of no credit."""
    update = tasks_pb.ProgressUpdate(
        percent_complete=100,
        stage="output omitted",
        message=f"{messages} messages of this task came faster than they were read, and are left "
        "out; the result has what it says",
    )
    return tasks_pb.TaskResponse(task_id=task_id, progress=update)
