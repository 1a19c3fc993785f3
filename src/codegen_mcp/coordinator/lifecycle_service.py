"""WorkerLifecycle: workers register here, beat, leave, and open their TaskStreams.

Wiring, for a server of the coordinator::

    async with LifecycleService(workers, fencing, gate, LifecycleServiceConfig()) as lifecycle:
        lifecycle.add_to(server)

before the server starts. Its handlers raise ``core.errors``; the server's ``EdgeInterceptor`` makes
statuses of them. Nobody but the gate asks who calls here.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import structlog
from grpc import aio

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.coordinator.auth.grpc_auth import Context, bearer_of, peer_of
from codegen_mcp.coordinator.auth.worker_auth import WorkerGate
from codegen_mcp.coordinator.dialled_link import DialledLink
from codegen_mcp.coordinator.fencing import Fencing
from codegen_mcp.coordinator.registered import Registered, load_of, registration_of
from codegen_mcp.coordinator.stream_channel import STALL_S, StreamChannel, level_of
from codegen_mcp.coordinator.stream_link import CREATE_S, StreamLink
from codegen_mcp.coordinator.stream_operations import Level
from codegen_mcp.coordinator.worker_dialler import WorkerDialler
from codegen_mcp.coordinator.worker_view import Worker
from codegen_mcp.coordinator.workers import Lost, Workers
from codegen_mcp.core.errors import (
    AlreadyExists,
    Conflict,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    WorkerError,
)

log = structlog.get_logger()

NAME = "codegen.v1.WorkerLifecycle"
WORKER_ID = "worker_id"
"""Metadata of a TaskStream: whose it is."""
REGISTRATION = "x-codegen-registration"
"""Metadata: ``RegisterResponse.session_id``, which nobody else knows."""
FIRST_FRAME_S = 10.0
"""How long a new TaskStream may be silent."""
HELLO_S = 1.0
"""How long after its first frame one may take to say whose it is."""
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
        self._gate = gate
        self._config = config or LifecycleServiceConfig()
        self._dialler = WorkerDialler(
            workers, credentials=self._config.credentials, dial_s=self._config.dial_s
        )
        self._known: dict[str, Registered] = {}
        self._links: set[StreamLink] = set()
        workers.on_lost(self._forget)

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
        for link in list(self._links):
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

    async def _forget(self, lost: Lost) -> None:
        known = self._known.get(lost.owner.worker_id)
        if known is not None and known.owner == lost.owner:
            del self._known[lost.owner.worker_id]

    # ---- the methods

    async def RegisterWorker(
        self, request: pb.RegisterRequest, context: Context
    ) -> pb.RegisterResponse:
        """Take in a worker, and say which of the sessions that it holds are its own."""
        _check(request)
        await self._admit(request.worker_id, context, token=request.auth_token)
        try:
            worker = await self._workers.register(registration_of(request))
        except AlreadyExists as error:
            return pb.RegisterResponse(accepted=False, reason=error.message)
        held = {one.session_id: one.epoch for one in request.sessions}
        adoption = await self._fencing.adopt(worker.owner, held)
        known = self._note(worker, context)
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
        known = self._known.get(request.worker_id)
        await self._prove(request.worker_id, known, context, request.session_id)
        worker = None if known is None else self._workers.find(known.owner)
        plain = not request.incarnation
        if known is None or worker is None or not known.is_meant(request):
            return self._again(request.worker_id, plain)
        if not await self._workers.beat(known.owner, load_of(request)):
            return self._again(request.worker_id, plain)
        known.heard.set()
        infos = request.capacity.sessions[:MOST_SESSIONS]
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
        known = self._known.get(request.worker_id)
        await self._prove(request.worker_id, known, context, request.session_id)
        if known is None or request.session_id not in ("", known.session_id):
            return pb.DeregisterResponse(acknowledged=False)
        log.info("worker.left", worker=request.worker_id, reason=request.reason[:200])
        await self._workers.drop(known.owner)
        if self._known.get(request.worker_id) is known:
            del self._known[request.worker_id]
        return pb.DeregisterResponse(acknowledged=True)

    async def TaskStream(
        self, frames: AsyncIterator[pb.TaskStreamMessage], context: Context
    ) -> pb.TaskStreamMessage:
        """Carry a worker's stream until it ends; the last message is an empty one."""
        known, hello = await self._identify(frames, context)
        level = Level.PLAIN if hello is None else level_of(hello)
        worker = self._workers.find(known.owner)
        if worker is None:
            raise _unregistered(known.owner.worker_id)
        if known.silent and known.owner.incarnation > 1:
            await self._hear(known)
        channel = StreamChannel(known.owner, level, stall_s=self._config.stall_s)
        channel.batches = hello is not None and hello.batches
        link = StreamLink(known.owner, channel, create_s=self._config.create_s)
        log.info("stream.opened", worker=worker.worker_id, frames=level.name.lower())
        dialled: DialledLink | None = None
        self._links.add(link)
        try:
            if not await self._dialler.reach(worker):
                await self._workers.attach(known.owner, link)
            elif isinstance(worker.link, DialledLink) and channel.batches:
                dialled = worker.link
                dialled.run_tasks_over(link)
            await link.serve(frames, context.write)
        finally:
            if dialled is not None:
                dialled.run_tasks_over(None)
            self._links.discard(link)
            await self._workers.detach(known.owner, link)
            log.info("stream.closed", worker=worker.worker_id)
        return pb.TaskStreamMessage(keepalive=pb.StreamKeepAlive())

    # ---- who is it?

    async def _admit(self, worker_id: str, context: Context, *, token: str = "") -> None:
        await self._gate.admit(worker_id, token or bearer_of(context), peer_of(context))

    def _note(self, worker: Worker, context: Context) -> Registered:
        known = self._known.get(worker.worker_id)
        if known is None or known.owner != worker.owner:
            known = Registered(worker.owner, session_id=f"reg_{secrets.token_hex(16)}")
            self._known[worker.worker_id] = known
        known.connection = connection_of(context)
        return known

    async def _prove(
        self, worker_id: str, known: Registered | None, context: Context, session_id: str
    ) -> None:
        """Let a call speak for a worker, whose name in it proves nothing.

        By what only its registration was told, or on the connection on which it registered, or by
        a token. Where none are asked for, a worker of the plain protocol is believed.

        Raises:
            Unauthenticated: It shows none of these.
        """
        told = session_id or metadata_of(context, REGISTRATION)
        if known is not None:
            if hmac.compare_digest(told.encode(), known.session_id.encode()):
                return
            if known.connection and known.connection == connection_of(context):
                return
        if self._gate.asks:
            await self._admit(worker_id, context)
        elif known is not None and not known.silent:
            raise Unauthenticated(
                f"this is not the worker that registered as {worker_id[:80]!r}; register again"
            )

    async def _identify(
        self, frames: AsyncIterator[pb.TaskStreamMessage], context: Context
    ) -> tuple[Registered, pb.StreamHello | None]:
        """Say whose stream this is: by its metadata, its hello, or its connection; never guessed.

        Raises:
            InvalidRequest: It does not say. NotFound: That worker is not registered.
            Unauthenticated: It is not that worker. Conflict: It is another start of it.
        """
        claim = metadata_of(context, WORKER_ID)
        if claim:
            await self._prove(claim, self._known.get(claim), context, "")
        else:
            claim = self._by_connection(context)
        hello: pb.StreamHello | None = None
        try:
            async with asyncio.timeout(self._config.first_frame_s) as patience:
                async for frame in frames:
                    if not claim:
                        patience.reschedule(asyncio.get_running_loop().time() + HELLO_S)
                    if frame.HasField("hello"):
                        hello = frame.hello
                    if hello is not None or (claim and not self._says_hello(claim)):
                        break
        except TimeoutError:
            raise _nameless() from None
        if hello is not None and claim not in ("", hello.worker_id):
            raise InvalidRequest(
                f"the stream is of worker {claim[:80]!r}, and its hello of {hello.worker_id[:80]!r}"
            )
        name = claim if hello is None else hello.worker_id
        if not name:
            raise _nameless()
        known = self._known.get(name)
        await self._prove(name, known, context, "")
        if known is None:
            raise _unregistered(name)
        if hello is not None and hello.incarnation not in (0, known.owner.incarnation):
            raise Conflict(
                f"the hello is of incarnation {hello.incarnation} of worker {name[:80]!r}, and "
                f"{known.owner.incarnation} is registered; register again"
            )
        return known, hello

    def _by_connection(self, context: Context) -> str:
        """The one worker that registered on the connection of a call; empty where it is not one."""
        connection = connection_of(context)
        found = [
            known.owner.worker_id
            for known in self._known.values()
            if known.connection == connection
        ]
        return found[0] if connection and len(found) == 1 else ""

    def _says_hello(self, worker_id: str) -> bool:
        """Whether a worker is one of those that always do."""
        known = self._known.get(worker_id)
        return known is not None and not known.silent

    async def _hear(self, known: Registered) -> None:
        """Wait for the first beat of a worker that does not say otherwise what it holds."""
        try:
            async with asyncio.timeout(2 * self._workers.config.beat_s):
                await known.heard.wait()
        except TimeoutError:
            log.info("worker.not_heard", worker=known.owner.worker_id)


def connection_of(context: Context) -> str:
    """Return what is the same for all calls of one connection, and of no other; else empty."""
    peer = context.peer() or ""
    return "" if peer.startswith("unix") else peer


def metadata_of(context: Context, name: str) -> str:
    """Return the text of one metadatum; empty when it is missing."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return ""


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


def _unregistered(worker_id: str) -> WorkerError:
    return NotFound(
        f"worker {worker_id[:80]!r} is not registered here; register before TaskStream",
        reason="WORKER_NOT_FOUND",
    )


def _nameless() -> WorkerError:
    return InvalidRequest(
        "the stream does not say whose it is: send worker_id in its metadata or a hello, or open "
        "it on the connection on which the worker registered"
    )
