"""Under which epochs a worker holds its sessions: implements ``base.Ownership``.

An epoch is given by a directory of sessions and has one owner for ever. A session that this worker
has lost to another one is fenced: it ends without a save, and no call under its old epochs is
answered any more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog

from codegen_mcp.core.errors import AlreadyExists, Conflict, InvalidRequest
from codegen_mcp.core.ids import check_session_id
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_ender import Ending
from codegen_mcp.engine.state_directory import StateDirectory

log = structlog.get_logger()

REMEMBERED = 10_000
"""Fences; those that a worker was told longest ago are forgotten first."""


class SessionOwnership:
    """Shared by the pool, which makes sessions, and the server, which asks for whom."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        state: StateDirectory,
        end: Callable[[Session, str], Ending],
    ) -> None:
        """Wire it up.

        Args:
            sessions: Those that live, by id; the pool's.
            state: Where they lie.
            end: Begins the end of one (``SessionEnder.begin``).
        """
        self._sessions = sessions
        self._state = state
        self._end = end
        self._fenced: dict[str, int] = {}
        self._claimed: set[str] = set()

    def held(self) -> Mapping[str, int]:
        """Every session that is not being ended, with its epoch."""
        return {
            session_id: session.epoch
            for session_id, session in self._sessions.items()
            if not session.ending
        }

    def check(self, session_id: str, epoch: int) -> None:
        """Refuse what is meant for another owner of a session."""
        session = self._sessions.get(session_id)
        if session is None or session.ending:
            self.check_fence(session_id, epoch)
        elif session.epoch != epoch:
            raise stale(session_id, epoch, session.epoch)

    def check_fence(self, session_id: str, epoch: int) -> None:
        """Refuse to bring back what was fenced.

        Raises:
            Conflict: It was fenced under this epoch or a higher one.
        """
        if epoch <= (fenced := self._fenced.get(session_id, 0)):
            raise stale(session_id, epoch, fenced)

    def check_restore(self, session_id: str, epoch: int) -> None:
        """Refuse to go back to an older owner's state.

        Raises:
            Conflict: It is held, or was fenced, under a higher epoch.
        """
        session = self._sessions.get(session_id)
        if session is not None and session.epoch > epoch:
            raise stale(session_id, epoch, session.epoch)
        self.check_fence(session_id, epoch)

    @contextmanager
    def claimed(self, session_ids: Sequence[str], epoch: int = 1) -> Iterator[None]:
        """Keep ids that were chosen for sessions to be, until these are made.

        Raises:
            AlreadyExists: There is such a session, or one is being made.
            InvalidRequest: One is malformed or given twice. Conflict: One was fenced.
        """
        if len(set(session_ids)) != len(session_ids):
            raise InvalidRequest("a session id is given twice; choose one for each session")
        for session_id in session_ids:
            check_session_id(session_id)
            taken = session_id in self._sessions or session_id in self._claimed
            if taken or self._state.session(session_id).exists():
                raise AlreadyExists(
                    f"session {session_id!r} is here already; choose another id",
                    reason="SESSION_EXISTS",
                    metadata={"session_id": session_id},
                )
            self.check_fence(session_id, epoch)
        self._claimed.update(session_ids)
        try:
            yield
        finally:
            self._claimed.difference_update(session_ids)

    async def grant(self, session_id: str, epoch: int) -> None:
        """Hold a session under a higher epoch from now on; durable when this returns."""
        session = self._sessions.get(session_id)
        if session is None or session.ending or session.epoch >= epoch:
            return
        await session.save(lambda record: dataclasses.replace(record, epoch=epoch))
        log.info("session.granted", session_id=session_id, epoch=epoch)

    async def fence(self, session_id: str, epoch: int) -> None:
        """End a session at once, its processes first; nothing of it is saved."""
        session = self._sessions.get(session_id)
        if session is not None and session.epoch > epoch:
            return
        self._fenced[session_id] = max(epoch, self._fenced.pop(session_id, 0))
        while len(self._fenced) > REMEMBERED:
            del self._fenced[next(iter(self._fenced))]
        if session is None:
            return
        log.warning("session.fenced", session_id=session_id, epoch=epoch)
        session.close_door()
        try:
            if session.slot.sandbox is not None:
                await session.slot.sandbox.aclose()
        finally:
            self._end(session, "fenced").hurry.set()


def stale(session_id: str, asked: int, held: int) -> Conflict:
    """Return the error of a call for another owner of a session than this worker is."""
    return Conflict(
        f"session {session_id[:80]!r} was asked for under epoch {asked}, and this worker has it "
        f"under {held}; ask the directory who holds it now",
        reason="STALE_EPOCH",
        metadata={"session_id": session_id[:80], "epoch": str(held)},
    )
