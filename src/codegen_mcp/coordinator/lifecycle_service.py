"""WorkerLifecycle: workers register here, beat, leave, and open their TaskStreams.

Wiring, for a server of the coordinator::

    async with LifecycleService(workers, fencing, gate, LifecycleServiceConfig()) as lifecycle:
        lifecycle.add_to(server)

before the server starts. Its handlers raise ``core.errors``; the server's ``EdgeInterceptor`` makes
statuses of them. Nobody but the gate asks who calls here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import structlog
from grpc import aio

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.coordinator.auth.grpc_auth import Context
from codegen_mcp.coordinator.auth.worker_auth import WorkerGate
from codegen_mcp.coordinator.dialled_link import DialledLink
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.fencing import MOST_TOLD, Fencing
from codegen_mcp.coordinator.registered import Registered, load_of, registration_of
from codegen_mcp.coordinator.stream_channel import STALL_S, StreamChannel, level_of
from codegen_mcp.coordinator.stream_link import CREATE_S, StreamLink
from codegen_mcp.coordinator.stream_operations import Level
from codegen_mcp.coordinator.worker_dialler import WorkerDialler
from codegen_mcp.coordinator.worker_identity import WorkerIdentity, unregistered
from codegen_mcp.coordinator.workers import Workers
from codegen_mcp.core.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
)

log = structlog.get_logger()

NAME = "codegen.v1.WorkerLifecycle"
FIRST_FRAME_S = 10.0
"""How long a new TaskStream may be silent."""
MOST_SESSIONS = 10_000
"""A worker that says it holds more is not believed."""
MOST_TEXT = 256
"""Of a worker's id, version or start id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleServiceConfig:
    """How workers are reached."""

    credentials: grpc.ChannelCredentials | None = None
    """For dialling workers; None is plain text."""
    dial_s: float = 3.0
    """How long a worker that announced an address has to answer there; then its TaskStream
    serves."""
    first_frame_s: float = FIRST_FRAME_S
    stall_s: float = STALL_S
    """How long a worker may not read its TaskStream."""
    create_s: float = CREATE_S
    """How long a worker of the plain protocol may take for a session."""


class LifecycleService:
    """An async context manager: it owns the attempts to dial workers."""

    def __init__(
        self,
        workers: Workers,
        fencing: Fencing,
        gate: WorkerGate,
        config: LifecycleServiceConfig | None = None,
    ) -> None:
        """Wire it up.

        Args:
            workers: The live view; open while this is.
            fencing: Answers for what workers say they hold.
            gate: Lets workers in.
            config: How they are reached.
        """
        self._workers = workers
        self._fencing = fencing
        self._config = config or LifecycleServiceConfig()
        self._identity = WorkerIdentity(gate, first_frame_s=self._config.first_frame_s)
        self._dialler = WorkerDialler(
            workers, credentials=self._config.credentials, dial_s=self._config.dial_s
        )
        self._links: dict[Owner, StreamLink] = {}
        """Of the streams that are open; a worker has one."""
        workers.on_lost(self._identity.forget)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._dialler.aclose()

    @property
    def streams(self) -> int:
        """TaskStreams that are open."""
        return len(self._links)

    async def end_streams(self) -> None:
        """Let go of the workers: nobody calls them over this coordinator any more."""
        for link in list(self._links.values()):
            await link.close()

    def add_to(self, server: aio.Server) -> None:
        """Serve it there."""
        method = grpc.unary_unary_rpc_method_handler
        handlers: dict[str, Any] = {
            "RegisterWorker": method(
                self.RegisterWorker,
                pb.RegisterRequest.FromString,
                pb.RegisterResponse.SerializeToString,
            ),
            "Heartbeat": method(
                self.Heartbeat,
                pb.HeartbeatRequest.FromString,
                pb.HeartbeatResponse.SerializeToString,
            ),
            "DeregisterWorker": method(
                self.DeregisterWorker,
                pb.DeregisterRequest.FromString,
                pb.DeregisterResponse.SerializeToString,
            ),
            "TaskStream": grpc.stream_stream_rpc_method_handler(
                self.TaskStream, pb.TaskStreamMessage.FromString, _serialized
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))

    # ---- the methods

    async def RegisterWorker(
        self, request: pb.RegisterRequest, context: Context
    ) -> pb.RegisterResponse:
        """Take in a worker, and say which of the sessions that it holds are its own."""
        _check(request)
        await self._identity.admit(request.worker_id, context, token=request.auth_token)
        try:
            worker = await self._workers.register(registration_of(request))
        except AlreadyExists as error:
            return pb.RegisterResponse(accepted=False, reason=error.message)
        held = {one.session_id: one.epoch for one in request.sessions}
        adoption = await self._fencing.adopt(worker.owner, held)
        known = self._identity.note(worker.owner, context)
        known.silent = not request.start_id
        if known.silent and worker.owner.incarnation == 1:
            self._dialler.begin(worker)  # it knows of no epochs, and had no sessions before
        beat_s = self._workers.config.beat_s
        return pb.RegisterResponse(
            session_id=known.session_id,
            accepted=True,
            heartbeat_interval_sec=max(1, int(beat_s)),
            heartbeat_interval_ms=int(beat_s * 1000),
            batches=True,
            incarnation=worker.owner.incarnation,
            fenced_sessions=adoption.fenced,
            granted_sessions=[
                pb.SessionEpoch(session_id=session_id, epoch=epoch)
                for session_id, epoch in adoption.granted.items()
            ],
        )

    async def Heartbeat(
        self, request: pb.HeartbeatRequest, context: Context
    ) -> pb.HeartbeatResponse:
        """Count a sign of life, and take in how full the worker is and what it holds."""
        known = self._identity.find(request.worker_id)
        await self._identity.prove(request.worker_id, known, context, request.session_id)
        worker = None if known is None else self._workers.find(known.owner)
        plain = not request.incarnation
        if known is None or worker is None or not known.is_meant(request):
            return self._again(request.worker_id, plain)
        if not await self._workers.beat(known.owner, load_of(request)):
            return self._again(request.worker_id, plain)
        known.heard.set()
        infos = request.capacity.sessions[:MOST_TOLD]
        if known.silent and not known.adopted:
            known.adopted = True
            held = {one.session_id: one.epoch for one in infos}
            await self._fencing.adopt(known.owner, held)
        whole = request.HasField("capacity")
        fenced = await self._fencing.report(known.owner, infos, whole=whole)
        self._dialler.begin(worker)
        return pb.HeartbeatResponse(continue_serving=True, fenced_sessions=fenced)

    def _again(self, worker_id: str, plain: bool) -> pb.HeartbeatResponse:
        """Ask for another registration, in the way that the worker understands.

        Raises:
            NotFound: It knows of no such command.
        """
        if plain:
            raise NotFound(
                f"worker {worker_id[:80]!r} is not registered here (any more); register again",
                reason="WORKER_NOT_FOUND",
            )
        return pb.HeartbeatResponse(continue_serving=True, commands=["register"])

    async def DeregisterWorker(
        self, request: pb.DeregisterRequest, context: Context
    ) -> pb.DeregisterResponse:
        """A worker leaves for good; its sessions may be taken over."""
        known = self._identity.find(request.worker_id)
        await self._identity.prove(request.worker_id, known, context, request.session_id)
        if known is None or request.session_id not in ("", known.session_id):
            return pb.DeregisterResponse(acknowledged=False)
        log.info("worker.left", worker=request.worker_id, reason=request.reason[:200])
        await self._workers.drop(known.owner)
        return pb.DeregisterResponse(acknowledged=True)

    async def TaskStream(
        self, frames: AsyncIterator[pb.TaskStreamMessage], context: Context
    ) -> pb.TaskStreamMessage:
        """Carry a worker's stream until it ends; the last message is an empty one."""
        known, hello = await self._identity.of_stream(frames, context)
        level = Level.PLAIN if hello is None else level_of(hello)
        worker = self._workers.find(known.owner)
        if worker is None:
            raise unregistered(known.owner.worker_id)
        if known.silent and known.owner.incarnation > 1:
            await self._hear(known)
        channel = StreamChannel(known.owner, level, stall_s=self._config.stall_s)
        channel.batches = hello is not None and hello.batches
        link = StreamLink(known.owner, channel, create_s=self._config.create_s)
        log.info("stream.opened", worker=worker.worker_id, frames=level.name.lower())
        dialled: DialledLink | None = None
        before = self._links.get(known.owner)
        self._links[known.owner] = link
        try:
            if before is not None:
                await before.close()
            if hello is not None and not hello.calls:
                await self._end_strangers(known.owner, hello, channel)
            if not await self._dialler.reach(worker):
                await self._workers.attach(known.owner, link)
            elif isinstance(worker.link, DialledLink) and channel.batches:
                dialled = worker.link
                dialled.run_tasks_over(link)
            await link.serve(frames, context.write)
        finally:
            if self._links.get(known.owner) is link:
                del self._links[known.owner]
                if dialled is not None:
                    dialled.run_tasks_over(None)
            await self._workers.detach(known.owner, link)
            log.info("stream.closed", worker=worker.worker_id)
        return pb.TaskStreamMessage(keepalive=pb.StreamKeepAlive())

    async def _end_strangers(
        self, owner: Owner, hello: pb.StreamHello, channel: StreamChannel
    ) -> None:
        """End what a worker holds that is another's, by the frame that it knows."""
        held = {one.session_id: one.epoch for one in hello.sessions[:MOST_TOLD]}
        for session_id in await self._fencing.fenced(owner, held):
            frame = pb.SessionDestroy(
                operation_id=channel.number("f"),
                session_id=session_id,
                force=True,
                epoch=held[session_id],
            )
            channel.put_now(pb.TaskStreamMessage(session_destroy=frame))

    async def _hear(self, known: Registered) -> None:
        """Wait for the first beat of a worker that does not say otherwise what it holds."""
        try:
            async with asyncio.timeout(2 * self._workers.config.beat_s):
                await known.heard.wait()
        except TimeoutError:
            log.info("worker.not_heard", worker=known.owner.worker_id)


def _serialized(message: bytes | pb.TaskStreamMessage) -> bytes:
    """Frames are written as bytes; the last one is returned as a message."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def _check(request: pb.RegisterRequest) -> None:
    for name in ("worker_id", "version", "start_id", "store_id", "grpc_address"):
        if len(getattr(request, name)) > MOST_TEXT:
            raise InvalidRequest(f"{name} has more than {MOST_TEXT} characters")
    if not request.worker_id.isprintable():
        raise InvalidRequest(f"worker_id={request.worker_id!r} has characters that do not print")
    if len(request.sessions) > MOST_SESSIONS:
        raise InvalidRequest(f"{len(request.sessions)} sessions are more than a worker can hold")
