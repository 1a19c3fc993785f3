"""Calls of the worker's services that come over one TaskStream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.core.checkpoint import parse_checkpoint_id
from codegen_mcp.core.errors import InvalidRequest, LimitExceeded, NotImplementedYet
from codegen_mcp.core.limits import MIB
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.server.convert import MAX_MESSAGE_BYTES
from codegen_mcp.server.foreign_ids import ForeignIds
from codegen_mcp.server.local_services import LocalMethod, LocalServices, Refused
from codegen_mcp.server.stream_flow import Credit, Outbox
from codegen_mcp.server.stream_frames import status_of, stream_error

Frame = pb.TaskStreamMessage

UPLOAD_BYTES = 2 * MIB
"""Of requests of one stream that may wait here."""


@dataclass(slots=True)
class Opened:
    """One streaming call."""

    credit: Credit
    requests: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    """Serialized; None is the end. What may be in it is bounded by the credit we give."""
    task: asyncio.Task[None] | None = None


class StreamCalls:
    """Of one TaskStream. Close it with ``aclose``: calls under way are then cancelled."""

    def __init__(self, local: LocalServices, ids: ForeignIds, outbox: Outbox[Frame]) -> None:
        self._local = local
        self._ids = ids
        self._outbox = outbox
        self._owned = OwnedTasks()
        self._opened: dict[str, Opened] = {}

    async def aclose(self) -> None:
        """End them."""
        await self._owned.aclose()

    # ---- unary calls

    def call(self, frame: pb.StreamCall) -> None:
        """Do a unary call."""
        self._owned.spawn(self._call(frame), "stream-call")

    async def _call(self, frame: pb.StreamCall) -> None:
        result = pb.StreamCallResult(call_id=frame.call_id)
        try:
            method = self._local.find(frame.method)
            if not method.unary:
                raise NotImplementedYet(f"{frame.method!r} is no unary method; open a stream")
            request = read(method, frame.request)
            answer = await self._do(method, request, frame.epoch, frame.request_id)
            result.response = answer.SerializeToString()
            if result.ByteSize() > MAX_MESSAGE_BYTES - 1024:
                raise LimitExceeded(f"the answer of {frame.method} is too large for a frame")
        except Exception as error:
            result.response = b""
            result.status = _status(error).SerializeToString()
        await self._outbox.put(Frame(call_result=result))

    async def _do(
        self, method: LocalMethod, request: object, epoch: int = 0, request_id: str = ""
    ) -> Message:
        return await self._local.call(
            method, request, write=_nowhere, epoch=epoch, request_id=request_id
        )

    # ---- what has frames of its own

    def cancel(self, frame: pb.TaskCancel) -> None:
        """Stop a task; its own answer tells its end."""
        request = tasks_pb.CancelRequest(
            task_id=frame.task_id,
            session_id=self._ids.ours(frame.session_id),
            reason=frame.reason,
        )
        method = self._local.find("TaskExecution/CancelTask")
        self._owned.spawn(self._do(method, request, frame.epoch), "stream-cancel")

    def operate(self, kind: str, frame: Message) -> None:
        """Destroy, checkpoint, restore or fork a session."""
        self._owned.spawn(self._operate(kind, frame), "stream-operation")

    async def _operate(self, kind: str, frame: Message) -> None:
        result = pb.SessionOperationResult(operation_id=frame.operation_id)  # type: ignore[attr-defined]  # each has one
        try:
            name, convert = OPERATIONS[kind]
            request = convert(frame, self._ids.ours)
            # Of a restore, the epoch is that of what it makes, and in the request.
            epoch = 0 if kind == "restore" else frame.epoch  # type: ignore[attr-defined]  # as above
            answer = await self._do(self._local.find(name), request, epoch)
            made = getattr(answer, "session_id", "") or getattr(request, "session_id", "")
            result.session_id = self._ids.theirs(made)
            result.checkpoint_id = getattr(answer, "checkpoint_id", "")
        except Exception as error:
            result.error.CopyFrom(stream_error(_status(error)))
        await self._outbox.put(Frame(operation_result=result))

    # ---- streams

    def open(self, frame: pb.StreamOpen) -> None:
        """Begin a streaming call; an id that is in use is not begun again."""
        if frame.stream_id in self._opened:
            return
        opened = self._opened[frame.stream_id] = Opened(Credit(frame.credit_bytes))
        opened.task = self._owned.spawn(self._stream(frame, opened), "stream-open")
        opened.task.add_done_callback(lambda _: self._opened.pop(frame.stream_id))

    def part(self, frame: pb.StreamPart) -> None:
        """Take a request of a stream, or its end."""
        opened = self._opened.get(frame.stream_id)
        if opened is not None:
            opened.requests.put_nowait(None if frame.end else frame.message)

    def grant(self, frame: pb.TaskFlowCredit) -> bool:
        """Let a stream send more; False when it is none of these."""
        opened = self._opened.get(frame.stream_id)
        if opened is None:
            return False
        opened.credit.grant(frame.bytes)
        return True

    def leave(self, stream_id: str) -> bool:
        """End a stream that nobody listens to; False when it is none of these."""
        opened = self._opened.get(stream_id)
        if opened is None or opened.task is None:
            return False
        opened.task.cancel()
        return True

    async def _stream(self, frame: pb.StreamOpen, opened: Opened) -> None:
        end = pb.StreamPart(stream_id=frame.stream_id, end=True)

        async def write(data: bytes) -> None:
            part = pb.StreamPart(stream_id=frame.stream_id, message=data)
            await opened.credit.take(part.ByteSize())
            await self._outbox.put(Frame(part=part))

        try:
            method = self._local.find(frame.method)
            if method.unary:
                raise NotImplementedYet(f"{frame.method!r} is a unary method; call it")
            request: object = self._requests(frame.stream_id, opened, method)
            if not method.client_streaming:
                request = read(method, await opened.requests.get() or b"")
            answer = await self._local.call(
                method, request, write=write, epoch=frame.epoch, request_id=frame.request_id
            )
            await write(answer.SerializeToString())
        except Exception as error:
            end.status = _status(error).SerializeToString()
        await self._outbox.put(Frame(part=end))

    async def _requests(
        self, stream_id: str, opened: Opened, method: LocalMethod
    ) -> AsyncIterator[Message]:
        """Yield the requests of a stream, and give credit for those that were taken."""
        grant = UPLOAD_BYTES
        while True:
            credit = pb.TaskFlowCredit(stream_id=stream_id, bytes=grant)
            self._outbox.put_now(Frame(credit=credit))
            data = await opened.requests.get()
            if data is None:
                return
            yield read(method, data)
            grant = len(data)


def read(method: LocalMethod, data: bytes) -> Message:
    """Read a request.

    Raises:
        InvalidRequest: It is none.
    """
    try:
        return method.request.FromString(data)
    except DecodeError:
        name = method.request.DESCRIPTOR.name
        raise InvalidRequest(f"the request is no {name}; serialize one") from None


def _status(error: Exception) -> status_pb2.Status:
    return error.status if isinstance(error, Refused) else status_of(error)


async def _nowhere(data: bytes) -> None:
    """A unary call has no message before its last."""


Ours = Callable[[str], str]


def _destroy(frame: pb.SessionDestroy, ours: Ours) -> Message:
    return sessions_pb.DestroySessionRequest(
        session_id=ours(frame.session_id), force=frame.force, save_checkpoint=frame.save_checkpoint
    )


def _checkpoint(frame: pb.SessionCheckpoint, ours: Ours) -> Message:
    return sessions_pb.CheckpointRequest(
        session_id=ours(frame.session_id),
        checkpoint_name=frame.checkpoint_name,
        incremental=frame.incremental,
    )


def _restore(frame: pb.SessionRestore, ours: Ours) -> Message:
    session_id = ours(frame.session_id)
    source = parse_checkpoint_id(frame.checkpoint_id)
    return sessions_pb.RestoreRequest(
        checkpoint_id=frame.checkpoint_id,
        session_id=session_id,
        create_new_session=session_id not in ("", source.session_id),
        epoch=frame.epoch,
    )


def _fork(frame: pb.SessionFork, ours: Ours) -> Message:
    return sessions_pb.ForkRequest(
        session_id=ours(frame.session_id),
        metadata=frame.metadata,
        new_session_ids=[ours(frame.new_session_id)] if frame.new_session_id else [],
    )


OPERATIONS: Mapping[str, tuple[str, Callable[..., Message]]] = {
    "session_destroy": ("SessionManagement/DestroySession", _destroy),
    "checkpoint": ("SessionManagement/CheckpointSession", _checkpoint),
    "restore": ("SessionManagement/RestoreSession", _restore),
    "fork": ("SessionManagement/ForkSession", _fork),
}
"""By member of the frame: the method, and its request from the frame."""
