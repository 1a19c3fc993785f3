"""One TaskStream as its coordinator has it: frames out in order, and in to whoever waits for them.

One task reads what the worker sends and never waits for anybody, one writes. What comes for nobody
here is dropped: an answer counts only for what was asked of this worker over this stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import structlog

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.remote_errors import LinkLost
from codegen_mcp.coordinator.stream_inbox import Inbox
from codegen_mcp.coordinator.stream_operations import Level
from codegen_mcp.core.errors import LimitExceeded
from codegen_mcp.server.convert import MAX_MESSAGE_BYTES
from codegen_mcp.server.stream_flow import Credit, Outbox

log = structlog.get_logger()

Frame = pb.TaskStreamMessage
Write = Callable[[bytes], Awaitable[Any]]

STALL_S = 20.0
"""How long the worker may not read before its stream counts as broken."""
KEEPALIVE_S = 10.0


class StreamChannel:
    """``serve`` carries it for as long as the stream lasts."""

    def __init__(self, owner: Owner, level: Level, *, stall_s: float = STALL_S) -> None:
        """Make it; what is put before it is served waits.

        Args:
            owner: The start of the worker at the other end.
            level: Which frames it knows, as far as is known.
            stall_s: See ``STALL_S``.
        """
        self.worker_id = owner.worker_id
        self.level = level
        self.batches = False
        """Whether the worker takes several frames in one."""
        self.created: asyncio.Future[pb.SessionCreateResponse] | None = None
        """Of the one session that is being made by ``session_create``."""
        self._stall_s = stall_s
        self._outbox: Outbox[Frame] = Outbox()
        self._numbers = count(1)
        self._answers: dict[str, asyncio.Future[Any]] = {}
        """Of calls and operations, by id."""
        self._inboxes: dict[str, list[Inbox[Any]]] = {}
        """By stream_id; of a peer that knows none, by task_id."""
        self._uploads: dict[str, Credit] = {}
        self._ended = asyncio.Event()

    async def serve(self, frames: AsyncIterator[Frame], write: Write) -> None:
        """Carry it until the worker ends the stream, breaks it, or it is closed.

        Args:
            frames: What the worker sends.
            write: Sends it a serialized frame; waits while the worker does not read.
        """
        works = [
            asyncio.ensure_future(work)
            for work in (
                self._receive(frames),
                self._send(write),
                self._keep_alive(),
                self._ended.wait(),
            )
        ]
        try:
            done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            for work in done:
                if not work.cancelled() and (error := work.exception()) is not None:
                    log.warning("stream.broken", worker=self.worker_id, error=repr(error)[:300])
        finally:
            self.close()
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.is_set()

    def close(self) -> None:
        """End everything under way with LinkLost; idempotent."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._outbox.close()
        for answer in (*self._answers.values(), self.created):
            if answer is not None and not answer.done():
                answer.set_exception(self.lost())
        for inboxes in self._inboxes.values():
            for inbox in inboxes:
                inbox.fail(self.lost())
        for credit in self._uploads.values():
            credit.release()

    def lost(self, *, sent: bool = True) -> LinkLost:
        """Return the error of everything that the stream's end ends."""
        return LinkLost(f"the TaskStream of worker {self.worker_id!r} has ended", sent=sent)

    # ---- out

    def number(self, kind: str) -> str:
        """Return an id that is new on this stream."""
        return f"{kind}{next(self._numbers)}"

    async def put(self, frame: Frame) -> None:
        """Send a frame after those before it.

        Raises:
            LinkLost: The stream ended; it was not sent. LimitExceeded: It is too large for a frame.
        """
        size = frame.ByteSize()
        if size > MAX_MESSAGE_BYTES:
            raise LimitExceeded(
                f"the call has {size} bytes on its way to worker {self.worker_id!r}, which takes "
                f"{MAX_MESSAGE_BYTES}; send less at once, and large files by WorkspaceFiles.Upload"
            )
        if not await self._outbox.put(frame):
            raise self.lost(sent=False)

    def put_now(self, frame: Frame) -> None:
        """Send a small one without waiting for room."""
        self._outbox.put_now(frame)

    # ---- in

    @contextmanager
    def answered(self, number: str) -> Iterator[asyncio.Future[Any]]:
        """Wait for the result of a call or an operation."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        try:
            yield future
        finally:
            del self._answers[number]
            if future.done() and not future.cancelled():
                future.exception()  # seen: whoever waited may have left

    def is_listening(self, key: str) -> bool:
        """Whether somebody follows that task or stream."""
        return key in self._inboxes

    @contextmanager
    def listening(self, key: str) -> Iterator[Inbox[Any]]:
        """Take in what comes for a task or stream, also beside others who do."""
        inbox: Inbox[Any] = Inbox()
        self._inboxes.setdefault(key, []).append(inbox)
        try:
            yield inbox
        finally:
            others = self._inboxes[key]
            others.remove(inbox)
            if not others:
                del self._inboxes[key]

    @contextmanager
    def granted(self, key: str) -> Iterator[Credit]:
        """Take in the credit that the worker gives for an upload."""
        self._uploads[key] = Credit(0)
        try:
            yield self._uploads[key]
        finally:
            del self._uploads[key]

    async def _send(self, write: Write) -> None:
        while frames := await self._outbox.get_batch(
            several=self.batches, under_way=self._inboxes.__len__
        ):
            if len(frames) > 1:
                frames = [Frame(batch=pb.StreamBatch(frames=frames))]
            async with asyncio.timeout(self._stall_s):
                for frame in frames:
                    await write(frame.SerializeToString())

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(KEEPALIVE_S)
            self._outbox.put_now(Frame(keepalive=pb.StreamKeepAlive()))

    async def _receive(self, frames: AsyncIterator[Frame]) -> None:
        async for frame in frames:
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        """Give a frame to whoever waits for it; never waits.

        Raises:
            Overrun: It is beyond the worker's credit.
        """
        kind = frame.WhichOneof("message")
        if kind == "response":
            answer = frame.response
            last = answer.WhichOneof("payload") in {"result", "error"}
            for inbox in self._inboxes.get(answer.stream_id or answer.task_id, ()):
                inbox.put(answer, omittable=self.level < Level.CALLS and not last)
        elif kind == "batch":
            for one in frame.batch.frames:
                self._take(one)
        elif kind == "part":
            for inbox in self._inboxes.get(frame.part.stream_id, ()):
                inbox.put(frame.part)
        elif kind == "call_result":
            self._answer(self._answers.get(frame.call_result.call_id), frame.call_result)
        elif kind == "operation_result":
            result = frame.operation_result
            self._answer(self._answers.get(result.operation_id), result)
        elif kind == "session_created":
            self._answer(self.created, frame.session_created)
        elif kind == "credit":
            credit = self._uploads.get(frame.credit.stream_id)
            if credit is not None:
                credit.grant(frame.credit.bytes)
        elif kind == "hello" and frame.hello.worker_id == self.worker_id:
            self.level = max(self.level, level_of(frame.hello))
            self.batches = frame.hello.batches

    @staticmethod
    def _answer(waiting: asyncio.Future[Any] | None, result: object) -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(result)


def level_of(hello: pb.StreamHello) -> Level:
    """Return which frames a peer knows that says hello."""
    return Level.CALLS if hello.calls else Level.HELLO
