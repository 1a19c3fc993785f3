"""Which session a call works in: the one it names, its connection's, or one made for it.

Two callers never share one unless both name it, and whose it is the gateway knows.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.coordinator.adhoc import ADHOC_IDLE_S, ADHOC_KEY
from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.core.errors import InvalidRequest, NotFound, WorkerError

log = structlog.get_logger()

SESSION_GONE = "SESSION_NOT_FOUND"


@dataclass(slots=True)
class DefaultSession:
    """What calls of one connection use that name none; made when the first one comes."""

    session_id: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The session of one call."""

    session_id: str
    notice: str = ""
    """What the caller should be told of it."""
    is_default: bool = False
    restored_from: str = ""
    lost: str = ""


class SessionChoice:
    """Chooses for one caller on one connection, or on none."""

    def __init__(
        self, gateway: Gateway, principal: Principal, default: DefaultSession | None
    ) -> None:
        self._gateway = gateway
        self._principal = principal
        self._default = default

    async def any(self, session_id: str) -> Chosen:
        """The named one, else the connection's, else a new one of its own.

        Raises:
            WorkerError: A new one was needed, and cannot be had.
        """
        if session_id:
            return Chosen(session_id=session_id)
        if self._default is None:
            made = await self._create(adhoc=True)
            return Chosen(
                session_id=made,
                notice=(
                    f"A new session was made for this call. Pass session_id={made!r} to go on "
                    f"with its files and packages; unused, it ends after {ADHOC_IDLE_S} s."
                ),
            )
        async with self._default.lock:
            if not self._default.session_id:
                self._default.session_id = await self._create(adhoc=False)
            return Chosen(session_id=self._default.session_id, is_default=True)

    def existing(self, session_id: str) -> str:
        """The named one, else the connection's if it has one by now.

        Raises:
            InvalidRequest: There is none.
        """
        chosen = session_id or (self._default.session_id if self._default else "")
        if not chosen:
            raise InvalidRequest(
                "no session_id was given and no session was used before; pass the session_id of "
                "an earlier result, or see session_list"
            )
        return chosen

    async def again(self, gone: Chosen, error: NotFound) -> Chosen:
        """After a call that found its session gone: restore it, or make the connection a new one.

        Raises:
            NotFound: Neither is possible; says what to do.
        """
        restored = await self._restore(gone.session_id)
        if restored is not None:
            return Chosen(
                session_id=restored.session_id,
                is_default=gone.is_default,
                restored_from=restored.checkpoint_metadata.checkpoint_id,
                lost=restored.lost,
            )
        if gone.is_default and self._default is not None:
            async with self._default.lock:
                if self._default.session_id == gone.session_id:
                    self._default.session_id = await self._create(adhoc=False)
                return Chosen(
                    session_id=self._default.session_id,
                    is_default=True,
                    notice=(
                        f"The session of this connection, {gone.session_id}, has ended and its "
                        "files and packages are gone. This call ran in a new, empty one."
                    ),
                )
        raise NotFound(
            f"there is no session {gone.session_id!r}: it has ended without a checkpoint, or it "
            "is not yours. Its files are gone; make a new one with session_create, and see "
            "session_list for those that live",
            reason=SESSION_GONE,
        ) from error

    def forget(self, session_id: str) -> None:
        """The session was destroyed; the connection's next call makes another."""
        if self._default is not None and self._default.session_id == session_id:
            self._default.session_id = ""

    async def leave(self) -> None:
        """The connection is over: its session ends soon, saved, unless somebody uses it."""
        if self._default is None or not self._default.session_id:
            return
        try:
            await self._gateway.unary(
                self._principal,
                "SessionManagement/SetIdleTimeout",
                pb.SetIdleTimeoutRequest(
                    session_id=self._default.session_id, idle_timeout_seconds=ADHOC_IDLE_S
                ),
            )
        except WorkerError as error:  # it then ends at its usual time
            log.info("mcp.session_not_left", reason=error.reason)

    async def _restore(self, session_id: str) -> pb.RestoreResponse | None:
        """Go back to the newest checkpoint; None where there is none."""
        try:
            listed = await self._gateway.unary(
                self._principal,
                "SessionManagement/ListCheckpoints",
                pb.ListCheckpointsRequest(session_id=session_id, page_size=1),
            )
            assert isinstance(listed, pb.ListCheckpointsResponse)
            if not listed.checkpoints:
                return None
            answer = await self._gateway.unary(
                self._principal,
                "SessionManagement/RestoreSession",
                pb.RestoreRequest(checkpoint_id=listed.checkpoints[0].checkpoint_id),
            )
        except NotFound:
            return None
        assert isinstance(answer, pb.RestoreResponse)
        return answer

    async def _create(self, *, adhoc: bool) -> str:
        request = pb.CreateSessionRequest(config=pb.SessionConfig(auto_restore=True))
        if adhoc:
            request.metadata[ADHOC_KEY] = "1"
            request.config.idle_timeout_seconds = ADHOC_IDLE_S
        made = await self._gateway.unary(
            self._principal, "SessionManagement/CreateSession", request
        )
        assert isinstance(made, pb.CreateSessionResponse)
        return made.session_id
