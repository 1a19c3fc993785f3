"""One call to the worker of a session, and what may be done when it fails on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.directory.base import SessionRow
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.routes import Held, Revive, Routes
from codegen_mcp.core.errors import Unavailable, WorkerError

T = TypeVar("T")

MAY_COME = frozenset({"NO_WORKER", "WORKER_AWAY"})
LOOK_AGAIN_S = 0.1


class Unheld(Exception):
    """Nobody holds a session, and the call does not bring it back."""


async def _leave(row: SessionRow) -> Held:
    raise Unheld


REPEATABLE = frozenset(
    {
        "SessionManagement/GetSessionStatus",
        "SessionManagement/GetSessionMetadata",
        "SessionManagement/UpdateSessionMetadata",
        "SessionManagement/SetSessionMetadata",
        "SessionManagement/SetIdleTimeout",
        "TaskExecution/CancelTask",
        "TaskExecution/GetTaskStatus",
        "TaskExecution/ListTasks",
        "ArtifactService/GetUploadURL",
        "ArtifactService/RecordArtifact",
        "ArtifactService/ListArtifacts",
        "ArtifactService/DeleteArtifact",
        "SessionManagement/ListCheckpoints",
        "SessionManagement/GetCheckpoint",
        "SessionManagement/DeleteCheckpoint",
    }
)
"""Doing these twice is doing them once (an upload that nobody uses runs out)."""

LOOKS = frozenset(
    {
        "SessionManagement/GetSessionStatus",
        "SessionManagement/SetIdleTimeout",
        "SessionManagement/DestroySession",
        "TaskExecution/CancelTask",
        "ArtifactService/GetUploadURL",
    }
)
"""Calls of a session that do not bring it back once it has ended (as on the worker)."""


class SessionCalls:
    """Calls that name a session."""

    def __init__(self, routes: Routes, revive: Revive, move: Callable[[Held], Awaitable[None]]):
        """``move`` takes a session off a worker that shuts down."""
        self._routes = routes
        self._revive = revive
        self._move = move

    @property
    def wait_s(self) -> float:
        """How long a call waits for a worker that is away."""
        return self._routes.config.wait_s

    async def held(self, principal: Principal, session_id: str, *, revive: bool = True) -> Held:
        """``Routes.held``, and back to life where it was lost.

        Raises:
            Unheld: It would have to be brought back, and ``revive`` is False.
        """
        how = self._revive if revive else _leave
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self.wait_s
        while True:
            try:
                return await self._routes.held(principal, session_id, how)
            except Unavailable as error:
                # Whoever can restore it, or has it, may be about to join (again).
                if error.reason not in MAY_COME or loop.time() >= give_up:
                    raise
            await asyncio.sleep(LOOK_AGAIN_S)

    async def unary(
        self, principal: Principal, session_id: str, method: str, request: Message
    ) -> Message:
        """Do a unary call of a session; again where that is harmless.

        Raises:
            WorkerError: Of the worker. Unavailable: Of the gateway (OUTCOME_UNKNOWN, WORKER_AWAY).
        """

        async def call(held: Held) -> Message:
            return await held.link.unary(method, request, epoch=held.row.epoch)

        return await self.attempt(
            principal,
            session_id,
            call,
            what=method,
            repeatable=method in REPEATABLE,
            uses=method not in LOOKS,
        )

    async def attempt(
        self,
        principal: Principal,
        session_id: str,
        work: Callable[[Held], Awaitable[T]],
        *,
        what: str,
        repeatable: bool,
        uses: bool = True,
        revive: bool = True,
    ) -> T:
        """Do something with a session; again where it never arrived, or may be repeated.

        Args:
            principal: Who asks.
            session_id: As they sent it.
            work: The call.
            what: Its name, for the message of an unknown outcome.
            repeatable: Doing it twice is doing it once.
            uses: It brings back a session that ended where it was, and has a checkpoint.
            revive: It brings back a session that was lost.

        Raises:
            Unheld: It was lost, and is not brought back.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._routes.config.wait_s
        while True:
            held = await self.held(principal, session_id, revive=revive)
            try:
                return await work(held)
            except WorkerError as error:
                await self.after(held, error, uses=uses)
                if refusals.is_broken(error) and refusals.was_sent(error) and not repeatable:
                    raise refusals.outcome_unknown(what, session_id) from error
                if loop.time() >= give_up:
                    raise refusals.worker_away(session_id, self._routes.config.wait_s) from error

    async def after(self, held: Held, error: WorkerError, *, uses: bool) -> None:
        """Return when the call may be tried again (if it may be repeated at all).

        Raises:
            NotFound: The session has ended.
            WorkerError: ``error`` itself, where trying again would not help.
        """
        row = held.row
        if refusals.is_broken(error):
            self._routes.forget(row.session_id)
            # A worker that ends is connected to in vain; its successor, or its loss, comes soon.
            await asyncio.sleep(0.05)
        elif refusals.is_stale(error):
            # It does not have what it holds: a restore that never was, or a row of another day.
            await self._routes.drop_hold(row)
        elif refusals.is_gone(error):
            back = await self._routes.ended_there(row)
            if not (back and uses):
                raise refusals.no_session(row.session_id) from error
        elif refusals.is_draining(error):
            await self._move(held)
        else:
            raise error
