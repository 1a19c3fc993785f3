"""A coordinator by others: it speaks WorkerLifecycle as first published, and nothing later.

It reads and writes no field from 200 on, names sessions in its own way, and tells whose a stream is
by its metadata or by its first keepalive, as coordinators in use do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import grpc
from grpc import aio

from codegen_mcp._proto.codegen.v1 import tools_pb2, worker_lifecycle_pb2_grpc
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb

WAIT_S = 10.0
KNOWN = frozenset({"assignment", "response", "keepalive", "session_create", "session_created"})

Identify = Literal["metadata", "keepalive"]


class PlainCoordinator(worker_lifecycle_pb2_grpc.WorkerLifecycleServicer):
    """One worker at a time is enough for it."""

    def __init__(self, identify: Identify = "metadata", *, beat_s: int = 1) -> None:
        self.identify = identify
        self.beat_s = beat_s
        self.registrations: list[pb.RegisterRequest] = []
        self.heartbeats: list[pb.HeartbeatRequest] = []
        self.left: list[pb.DeregisterRequest] = []
        self.frames: list[pb.TaskStreamMessage] = []
        """Everything that came over streams."""
        self.streams = 0
        """That were opened so far, and accepted."""
        self.refuse = ""
        """Why registrations are not accepted; empty accepts them."""
        self.answer: Callable[[pb.HeartbeatRequest], pb.HeartbeatResponse] | None = None
        """To heartbeats; None says to go on."""
        self.beat_error: grpc.StatusCode | None = None
        """What heartbeats fail with."""
        self.reads = True
        """False: what the worker sends over its stream is left where it is."""
        self.known: set[str] = set()
        """Of registrations."""
        self._send: asyncio.Queue[pb.TaskStreamMessage | None] = asyncio.Queue()
        self._changed = asyncio.Event()

    # ---- the service

    async def RegisterWorker(self, request: pb.RegisterRequest, context: Any) -> Any:
        """Accept it."""
        self.registrations.append(request)
        self._notify()
        if self.refuse:
            return pb.RegisterResponse(accepted=False, reason=self.refuse)
        session_id = f"registration-{len(self.registrations)}-{id(self):x}"
        self.known.add(session_id)
        return pb.RegisterResponse(
            session_id=session_id,
            accepted=True,
            heartbeat_interval_sec=self.beat_s,
        )

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> Any:
        """Say to go on."""
        self.heartbeats.append(request)
        self._notify()
        if request.session_id not in self.known:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown registration")
        if self.beat_error is not None:
            await context.abort(self.beat_error, "unknown worker")
        if self.answer is not None:
            return self.answer(request)
        return pb.HeartbeatResponse(continue_serving=True)

    async def DeregisterWorker(self, request: pb.DeregisterRequest, context: Any) -> Any:
        """Take note."""
        self.left.append(request)
        self._notify()
        return pb.DeregisterResponse(acknowledged=True)

    async def TaskStream(self, request_iterator: Any, context: Any) -> Any:  # type: ignore[override]  # a coroutine, as grpc.aio takes it
        """Take a stream whose worker is known."""
        metadata = dict(context.invocation_metadata())
        if not self.known:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "register first")
        if self.identify == "metadata" and not metadata.get("worker_id"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "missing worker_id")
        first = await anext(aiter(request_iterator))
        if first.WhichOneof("message") != "keepalive" or not first.keepalive.timestamp_ms:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected keepalive first")
        self.streams += 1
        queue: asyncio.Queue[pb.TaskStreamMessage | None] = asyncio.Queue()
        self._send = queue
        self._notify()
        reading = asyncio.ensure_future(self._read(request_iterator))
        try:
            while (frame := await queue.get()) is not None:
                await context.write(frame)
        finally:
            reading.cancel()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "stream dropped")

    async def _read(self, frames: Any) -> None:
        async for frame in frames:
            while not self.reads:
                await self.until(lambda: self.reads)
            self.frames.append(frame)
            self._notify()

    # ---- what tests do with it

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def resume(self) -> None:
        """Read again."""
        self.reads = True
        self._notify()

    async def until(self, holds: Callable[[], Any], within_s: float = WAIT_S) -> None:
        """Wait for a condition on what came.

        Raises:
            TimeoutError: It does not hold in time.
        """
        async with asyncio.timeout(within_s):
            while not holds():
                await self._changed.wait()

    def send(self, **member: Any) -> None:
        """Put a frame on the stream that is open."""
        self._send.put_nowait(pb.TaskStreamMessage(**member))

    def drop_stream(self) -> None:
        """End the stream that is open with an error."""
        self._send.put_nowait(None)

    async def create(self, session_id: str, **fields: Any) -> pb.SessionCreateResponse:
        """Have a session made; the answer to this request."""
        seen = len(self.frames)

        def answers() -> list[pb.SessionCreateResponse]:
            found = [f.session_created for f in self.frames[seen:] if f.HasField("session_created")]
            return [one for one in found if one.session_id == session_id]

        self.send(session_create=pb.SessionCreateRequest(session_id=session_id, **fields))
        await self.until(answers)
        return answers()[0]

    def assign(self, task_id: str, session_id: str, tool: tools_pb2.ToolRequest, **f: Any) -> None:
        """Send a task."""
        self.send(
            assignment=pb.TaskAssignment(task_id=task_id, session_id=session_id, request=tool, **f)
        )

    def responses(self, task_id: str) -> list[pb.TaskStreamResponse]:
        """Everything that was said of a task."""
        found = [frame.response for frame in self.frames if frame.HasField("response")]
        return [one for one in found if one.task_id == task_id]

    def endings(self, task_id: str) -> list[pb.TaskStreamResponse]:
        """The results and errors of a task."""
        ends = {"result", "error"}
        return [one for one in self.responses(task_id) if one.WhichOneof("payload") in ends]

    async def ending(self, task_id: str, count: int = 1) -> pb.TaskStreamResponse:
        """Wait for a task's result or error; the last of ``count``."""
        await self.until(lambda: len(self.endings(task_id)) >= count)
        return self.endings(task_id)[count - 1]

    def strange(self) -> list[str]:
        """Members of frames that it does not know."""
        kinds = {frame.WhichOneof("message") or "none" for frame in self.frames}
        return sorted(kinds - KNOWN)


@asynccontextmanager
async def serving(coordinator: PlainCoordinator, port: int = 0) -> AsyncIterator[int]:
    """Serve it on loopback; yields the port."""
    server = aio.server(options=(("grpc.so_reuseport", 0),))
    worker_lifecycle_pb2_grpc.add_WorkerLifecycleServicer_to_server(coordinator, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)
