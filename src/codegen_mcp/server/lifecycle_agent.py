"""The worker as a client of WorkerLifecycle: joins a coordinator, and stays with it.

It registers, beats at the interval it is told, and keeps a TaskStream open. Whatever fails is tried
again after a wait drawn from zero to a bound that doubles (full jitter), so that a fleet does not
come back in one wave. Sessions that the coordinator says are another worker's end here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TypeAlias

import grpc
import structlog
from grpc import aio

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2_grpc
from codegen_mcp.core.errors import StoreUnavailable
from codegen_mcp.engine.base import Ownership
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.convert import MAX_MESSAGE_BYTES
from codegen_mcp.server.foreign_ids import ForeignIds
from codegen_mcp.server.lifecycle_agent_reports import Reports
from codegen_mcp.server.lifecycle_agent_stream import AgentStream
from codegen_mcp.server.lifecycle_agent_tasks import StreamTasks
from codegen_mcp.server.lifecycle_config import LifecycleConfig

log = structlog.get_logger()

Stub: TypeAlias = "worker_lifecycle_pb2_grpc.WorkerLifecycleAsyncStub"

REGISTER, DRAIN = "register", "drain"
"""Commands of a coordinator."""
MISSES = 2
"""So many heartbeats in a row without an answer: the connection is made anew."""
FRAME_BYTES = MAX_MESSAGE_BYTES + 64 * 1024
"""A task of the largest size, in its frame."""
OPTIONS = (
    ("grpc.max_receive_message_length", FRAME_BYTES),
    ("grpc.max_send_message_length", FRAME_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Retries are ours: only we know what may be sent twice.
    ("grpc.enable_retries", 0),
    # A connection that is given up must not come back with the next channel.
    ("grpc.use_local_subchannel_pool", 1),
)
ANEW = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
"""What is answered so came from a worker that the coordinator does not know."""
LEAST_ANSWER_S = 2.0
LEAST_BOUND_S = 1.0
FLUSH_S = 5.0
LULL_S = 2.0
"""A coordinator that moves sessions off a draining worker looks at it more often than that."""


class _Refused(Exception):
    """The coordinator does not accept this worker."""


class LifecycleAgent:
    """An async context manager: while it is open, the worker is with its coordinator, or tries.

    Attributes:
        drain_asked: Set when the coordinator wants the worker to drain and leave.
        joined: Set while it is registered and its last heartbeat was answered.
        incarnation: Of this start; 0 before it joined, and with a coordinator of the plain
            protocol.
    """

    def __init__(self, config: LifecycleConfig, server: WorkerServer, ownership: Ownership) -> None:
        """Wire it up.

        Args:
            config: Whose worker this is.
            server: Serving.
            ownership: Of the engine's sessions.
        """
        self._config = config
        self._server = server
        self._ownership = ownership
        self._ids = ForeignIds()
        self._reports = Reports(config, server, ownership, self._ids)
        self._random = random.SystemRandom()
        self._metadata = (
            (("worker_id", config.worker_id),)
            if not config.auth_token
            else (
                ("worker_id", config.worker_id),
                ("authorization", f"Bearer {config.auth_token}"),
            )
        )
        self._beat_now = asyncio.Event()
        self._interval_s = config.beat_s
        """Between two heartbeats, as told last."""
        self._stub: Stub | None = None
        self._registration: pb.RegisterResponse | None = None
        self._stream: AgentStream | None = None
        self._tasks: StreamTasks | None = None
        self._work: asyncio.Task[None] | None = None
        self.drain_asked = asyncio.Event()
        self.joined = asyncio.Event()
        self.incarnation = 0

    async def __aenter__(self) -> LifecycleAgent:
        local = self._server.local
        assert local is not None, "the server serves before the agent joins"
        self._tasks = StreamTasks(
            local, self._ids, self._server.session_metadata, grace_s=self._config.grace_s
        )
        self._work = asyncio.create_task(self._stay(), name="lifecycle-agent")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        if self._tasks is not None:
            await self._tasks.aclose()

    def tell_now(self) -> None:
        """Beat at once: something has changed that the coordinator should know (a drain)."""
        self._beat_now.set()

    async def emptied(self, lull_s: float = LULL_S) -> bool:
        """Return when every session has moved to other workers; False when no more do.

        Args:
            lull_s: So long none has moved.
        """
        loop = asyncio.get_running_loop()
        left, since = len(self._ownership.held()), loop.time()
        while left and self.joined.is_set() and loop.time() - since < lull_s:
            await asyncio.sleep(LULL_S / 40)
            if (now := len(self._ownership.held())) < left:
                left, since = now, loop.time()
        return not left

    async def leave(self, reason: str) -> bool:
        """Send what is left to be said, deregister and stay away; whether it was acknowledged."""
        stub, registration, stream = self._stub, self._registration, self._stream
        acknowledged = False
        try:
            async with asyncio.timeout(FLUSH_S):
                if stream is not None:
                    await stream.flush()
                if stub is not None and registration is not None:
                    answer = await stub.DeregisterWorker(
                        pb.DeregisterRequest(
                            worker_id=self._config.worker_id,
                            session_id=registration.session_id,
                            reason=reason,
                        ),
                        metadata=self._call_metadata(),
                    )
                    acknowledged = answer.acknowledged
        except (aio.AioRpcError, TimeoutError, asyncio.InvalidStateError) as error:
            log.warning("lifecycle.not_deregistered", error=_words(error))
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        return acknowledged

    # ---- one connection after the other

    async def _stay(self) -> None:
        attempt = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._one_connection()
            except (aio.AioRpcError, TimeoutError, _Refused, StoreUnavailable, OSError) as error:
                log.warning(
                    "lifecycle.away", coordinator=self._config.coordinator, error=_words(error)
                )
            except Exception:
                log.exception("lifecycle.failed")
            finally:
                self.joined.clear()
            lasted = asyncio.get_running_loop().time() - began
            attempt = 0 if lasted > self._config.backoff_s[1] else attempt + 1
            await self._pause(attempt)

    async def _pause(self, attempt: int) -> None:
        """Wait before an attempt; longer after several in vain.

        Never so long that a coordinator that came back would call this worker lost meanwhile.
        """
        first, most = self._config.backoff_s
        most = min(most, max(LEAST_BOUND_S, 2 * self._interval_s))
        bound = min(most, first * 2.0 ** max(0, min(attempt, 30)))
        await asyncio.sleep(self._random.uniform(0, bound))

    async def _one_connection(self) -> None:
        """Register, and stay until it fails, or the coordinator wants another registration."""
        config = self._config
        if config.credentials is None:
            channel = aio.insecure_channel(config.coordinator, options=OPTIONS)
        else:
            channel = aio.secure_channel(config.coordinator, config.credentials, options=OPTIONS)
        async with channel:
            self._stub = stub = worker_lifecycle_pb2_grpc.WorkerLifecycleStub(channel)
            loop, attempt = asyncio.get_running_loop(), 0
            try:
                while True:
                    began = loop.time()
                    registration = await self._register(stub)
                    beats = asyncio.ensure_future(self._beat(stub, registration))
                    streams = asyncio.ensure_future(self._keep_stream(stub, registration))
                    try:
                        await asyncio.wait({beats, streams}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for work in (beats, streams):
                            work.cancel()
                        results = await asyncio.gather(beats, streams, return_exceptions=True)
                    for result in results:
                        if isinstance(result, Exception):
                            raise result
                    lasted = loop.time() - began
                    attempt = 0 if lasted > self._config.backoff_s[1] else attempt + 1
                    await self._pause(attempt - 1)
            finally:
                self._stub = self._registration = None

    async def _register(self, stub: Stub) -> pb.RegisterResponse:
        request = await self._reports.registration()
        held = dict(self._ownership.held())
        registration: pb.RegisterResponse = await stub.RegisterWorker(
            request, metadata=self._metadata, timeout=self._config.answer_s
        )
        if not registration.accepted:
            raise _Refused(registration.reason or "no reason was given")
        if registration.incarnation:
            # It knows of dial tokens: nobody else may call this worker's own services.
            self._server.serve_coordinator_alone()
        await self._fence(registration.fenced_sessions, held)
        for one in registration.granted_sessions:
            await self._ownership.grant(one.session_id, one.epoch)
        self._registration = registration
        self.incarnation = registration.incarnation
        log.info(
            "lifecycle.registered",
            coordinator=self._config.coordinator,
            incarnation=registration.incarnation,
            granted=len(registration.granted_sessions),
            fenced=len(registration.fenced_sessions),
        )
        return registration

    async def _fence(self, session_ids: Iterable[str], held: Mapping[str, int]) -> None:
        """End sessions that are another worker's, as they were when this one told of them."""
        await asyncio.gather(*(self._ownership.fence(one, held.get(one, 0)) for one in session_ids))

    def _call_metadata(self) -> tuple[tuple[str, str], ...]:
        registration = self._registration
        session_id = "" if registration is None else registration.session_id
        return (*self._metadata, ("x-codegen-registration", session_id))

    # ---- heartbeats

    async def _beat(self, stub: Stub, registration: pb.RegisterResponse) -> None:
        """Beat until the coordinator wants another registration.

        Raises:
            AioRpcError: It does not answer any more.
        """
        interval_s = self._interval_s = (
            registration.heartbeat_interval_ms / 1000
            or registration.heartbeat_interval_sec
            or self._config.beat_s
        )
        # A path that went silent is noticed about when the coordinator calls this worker lost.
        answer_s = min(self._config.answer_s, max(LEAST_ANSWER_S, 2 * interval_s))
        missed = 0
        while True:
            held = dict(self._ownership.held())
            request = self._reports.heartbeat(registration)
            self._beat_now.clear()
            try:
                answer = await stub.Heartbeat(
                    request, metadata=self._call_metadata(), timeout=answer_s
                )
            except aio.AioRpcError as error:
                self.joined.clear()
                if error.code() in ANEW:
                    log.info("lifecycle.unknown", code=error.code().name)
                    return
                missed += 1
                if missed >= MISSES:
                    raise
            else:
                missed = 0
                self.joined.set()
                await self._fence(answer.fenced_sessions, held)
                if REGISTER in answer.commands:
                    return
                if DRAIN in answer.commands or not answer.continue_serving:
                    self._ask_drain()
            try:
                async with asyncio.timeout(interval_s):
                    await self._beat_now.wait()
            except TimeoutError:
                pass

    def _ask_drain(self) -> None:
        if not self.drain_asked.is_set():
            log.info("lifecycle.drain_asked", coordinator=self._config.coordinator)
            self.drain_asked.set()

    # ---- the stream

    async def _keep_stream(self, stub: Stub, registration: pb.RegisterResponse) -> None:
        """Open a TaskStream, again and again, until the coordinator wants another registration."""
        assert self._tasks is not None
        assert self._server.local is not None
        attempt = 0
        while True:
            first = []
            if registration.incarnation:
                hello = pb.StreamHello(
                    worker_id=self._config.worker_id,
                    incarnation=registration.incarnation,
                    sessions=self._reports.sessions(),
                    calls=True,
                    batches=True,
                )
                first.append(pb.TaskStreamMessage(hello=hello))
            began = asyncio.get_running_loop().time()
            self._stream = AgentStream(
                self._server.local,
                self._ids,
                self._tasks,
                keepalive_s=self._config.beat_s,
                batches=registration.batches,
            )
            try:
                await self._stream.carry(
                    stub.TaskStream(metadata=self._call_metadata()),
                    first,
                    timestamp_ms=int(time.time() * 1000),
                )
                log.info("lifecycle.stream_ended")
            except (aio.AioRpcError, TimeoutError) as error:
                log.info("lifecycle.stream_broken", error=_words(error))
                if isinstance(error, aio.AioRpcError) and error.code() in ANEW:
                    return
            finally:
                self._stream = None
            lasted = asyncio.get_running_loop().time() - began
            attempt = 0 if lasted > self._config.backoff_s[1] else attempt + 1
            await self._pause(attempt)


def _words(error: BaseException) -> str:
    if isinstance(error, aio.AioRpcError):
        return f"{error.code().name}: {error.details() or ''}"[:300]
    return str(error)[:300] or type(error).__name__
