"""The worker's end of one TaskStream: from its first keepalive to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import structlog
from grpc import aio

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.server.foreign_ids import ForeignIds
from codegen_mcp.server.lifecycle_agent_calls import OPERATIONS, StreamCalls
from codegen_mcp.server.lifecycle_agent_tasks import StreamTasks
from codegen_mcp.server.local_services import LocalServices
from codegen_mcp.server.stream_flow import Outbox

log = structlog.get_logger()

Frame = pb.TaskStreamMessage
# Text: the class is generic to type checkers only.
Stream: TypeAlias = "aio.StreamStreamCall[Frame, Frame]"

STALL_S = 20.0
"""How long the coordinator may not read before the stream counts as broken."""


class AgentStream:
    """Carries one stream; use it once."""

    def __init__(
        self,
        local: LocalServices,
        ids: ForeignIds,
        tasks: StreamTasks,
        *,
        keepalive_s: float,
        batches: bool = False,
    ) -> None:
        """Wire it up.

        Args:
            local: The worker's services.
            ids: Of the coordinator.
            tasks: What goes on over several streams.
            keepalive_s: Between two keepalives.
            batches: The coordinator takes several frames in one.
        """
        self._batches = batches
        self._tasks = tasks
        self._keepalive_s = keepalive_s
        self._outbox: Outbox[Frame] = Outbox()
        self._calls = StreamCalls(local, ids, self._outbox)

    async def carry(self, stream: Stream, first: Sequence[Frame], *, timestamp_ms: int) -> None:
        """Serve what comes over it; returns when the coordinator ended it.

        Args:
            stream: Just begun.
            first: What follows the first keepalive.
            timestamp_ms: Of the first keepalive; Unix milliseconds.

        Raises:
            grpc.RpcError: It broke. TimeoutError: The coordinator does not read.
        """
        hello = pb.StreamKeepAlive(timestamp_ms=timestamp_ms)
        for frame in (Frame(keepalive=hello), *first):
            self._outbox.put_now(frame)
        works = [
            asyncio.ensure_future(work)
            for work in (
                self._receive(stream),
                self._send(stream, 1 + len(first)),
                self._keep_alive(timestamp_ms),
            )
        ]
        self._tasks.attach(self._outbox)
        try:
            await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            if works[1].done() and not works[0].done():
                # Why a send failed is known to whoever reads.
                await asyncio.wait(works[:1], timeout=1.0)
            works[0 if works[0].done() else 1].result()
        finally:
            self._tasks.detach(self._outbox, self._outbox.close())
            for work in works:
                work.cancel()
            stream.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            await self._calls.aclose()

    async def flush(self) -> None:
        """Return when everything was sent, or cannot be any more."""
        await self._outbox.flush()

    async def _send(self, stream: Stream, alone: int) -> None:
        """Send until it is closed; so many frames, which say whose stream it is, by themselves."""
        while frames := await self._outbox.get_batch(
            several=self._batches and alone <= 0, under_way=self._tasks.under_way
        ):
            alone -= 1
            if len(frames) > 1:
                frames = [Frame(batch=pb.StreamBatch(frames=frames))]
            try:
                async with asyncio.timeout(STALL_S):
                    for frame in frames:
                        await stream.write(frame)
            except asyncio.InvalidStateError:
                return  # it has ended; the reader says how

    async def _keep_alive(self, timestamp_ms: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            await asyncio.sleep(self._keepalive_s)
            now = timestamp_ms + int((loop.time() - began) * 1000)
            self._outbox.put_now(Frame(keepalive=pb.StreamKeepAlive(timestamp_ms=now)))

    async def _receive(self, stream: Stream) -> None:
        async for frame in stream:
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        """Begin what a frame asks for; never waits."""
        kind = frame.WhichOneof("message")
        if kind == "batch":
            for one in frame.batch.frames:
                self._take(one)
        elif kind == "assignment":
            self._tasks.take(frame.assignment, self._outbox)
        elif kind == "session_create":
            self._tasks.create(frame.session_create)
        elif kind == "call":
            self._calls.call(frame.call)
        elif kind == "open":
            self._calls.open(frame.open)
        elif kind == "part":
            self._calls.part(frame.part)
        elif kind == "credit":
            if not self._calls.grant(frame.credit):
                self._tasks.grant(frame.credit)
        elif kind == "leave":
            if not self._calls.leave(frame.leave.stream_id):
                self._tasks.leave(frame.leave.stream_id)
        elif kind == "cancel":
            self._calls.cancel(frame.cancel)
        elif kind is not None and kind in OPERATIONS:
            self._calls.operate(kind, getattr(frame, kind))
