"""Which worker a call of WorkerLifecycle is of, and whether it may speak for it.

A name in a message proves nothing. Whoever registered was told a secret, has a connection of its
own, and may have a token; a call shows one of these.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.coordinator.auth.grpc_auth import Context, bearer_of, peer_of
from codegen_mcp.coordinator.auth.worker_auth import WorkerGate
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.registered import Registered
from codegen_mcp.coordinator.workers import Lost
from codegen_mcp.core.errors import (
    Conflict,
    Full,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    WorkerError,
)

WORKER_ID = "worker_id"
"""Metadata of a TaskStream: whose it is."""
REGISTRATION = "x-codegen-registration"
"""Metadata: ``RegisterResponse.session_id``, which nobody else knows."""
HELLO_S = 1.0
"""How long after its first frame a stream may take to say whose it is."""
MOST_NAMELESS = 1_000
"""Streams at once of which it is not known yet whose they are."""


class WorkerIdentity:
    """The workers that registered here, by what they can be known by."""

    def __init__(self, gate: WorkerGate, *, first_frame_s: float) -> None:
        """Wire it up.

        Args:
            gate: Lets workers in.
            first_frame_s: How long a new stream may be silent.
        """
        self._gate = gate
        self._first_frame_s = first_frame_s
        self._known: dict[str, Registered] = {}
        self._nameless = 0

    def find(self, worker_id: str) -> Registered | None:
        """Return the registration of a worker, if there is one."""
        return self._known.get(worker_id)

    async def forget(self, lost: Lost) -> None:
        """That start is over."""
        known = self._known.get(lost.owner.worker_id)
        if known is not None and known.owner == lost.owner:
            del self._known[lost.owner.worker_id]

    async def admit(self, worker_id: str, context: Context, *, token: str = "") -> None:
        """Ask the gate.

        Raises:
            Unauthenticated: It does not let this caller speak for that worker.
        """
        await self._gate.admit(worker_id, token or bearer_of(context), peer_of(context))

    def note(self, owner: Owner, context: Context) -> Registered:
        """Remember a registration that was let in, and where it came from."""
        known = self._known.get(owner.worker_id)
        if known is None or known.owner != owner:
            known = Registered(owner, session_id=f"reg_{secrets.token_hex(16)}")
            self._known[owner.worker_id] = known
        known.connection = connection_of(context)
        return known

    async def prove(
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
            await self.admit(worker_id, context)
        elif known is not None and not known.silent:
            raise Unauthenticated(
                f"this is not the worker that registered as {worker_id[:80]!r}; register again"
            )

    async def of_stream(
        self, frames: AsyncIterator[pb.TaskStreamMessage], context: Context
    ) -> tuple[Registered, pb.StreamHello | None]:
        """Say whose stream this is: by its metadata, its hello, or its connection; never guessed.

        Raises:
            InvalidRequest: It does not say. NotFound: That worker is not registered.
            Unauthenticated: It is not that worker. Conflict: It is another start of it.
            Full: Too many others do not say so either.
        """
        if self._nameless >= MOST_NAMELESS:
            raise Full("too many streams that do not say whose they are", retry_after_s=1.0)
        self._nameless += 1
        try:
            return await self._named(frames, context)
        finally:
            self._nameless -= 1

    async def _named(
        self, frames: AsyncIterator[pb.TaskStreamMessage], context: Context
    ) -> tuple[Registered, pb.StreamHello | None]:
        claim = metadata_of(context, WORKER_ID)
        if claim:
            await self.prove(claim, self._known.get(claim), context, "")
        else:
            claim = self._by_connection(context)
        hello: pb.StreamHello | None = None
        first = True
        try:
            async with asyncio.timeout(self._first_frame_s) as patience:
                async for frame in frames:
                    if first and not claim:
                        patience.reschedule(asyncio.get_running_loop().time() + HELLO_S)
                    first = False
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
        await self.prove(name, known, context, "")
        if known is None:
            raise unregistered(name)
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


def unregistered(worker_id: str) -> WorkerError:
    """Return the answer to a stream of a worker that is not registered."""
    return NotFound(
        f"worker {worker_id[:80]!r} is not registered here; register before TaskStream",
        reason="WORKER_NOT_FOUND",
    )


def _nameless() -> WorkerError:
    return InvalidRequest(
        "the stream does not say whose it is: send worker_id in its metadata or a hello, or open "
        "it on the connection on which the worker registered"
    )
