"""The end of sessions that are idle or too old, after a last save where one is asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_ender import Ending

BeforeEnd = Callable[[Session, str], Awaitable[None]]
"""Awaited before a session is ended for ``idle``, ``age`` or ``drain``; never raises."""


class Expiry:
    """Starts ends, and sees that what wants to be saved is saved first."""

    def __init__(self, begin: Callable[[Session, str], Ending], tasks: OwnedTasks) -> None:
        """``begin`` starts an end (``SessionEnder.begin``); ``tasks`` owns the saves before it."""
        self._begin = begin
        self._tasks = tasks
        self._under_way: set[str] = set()
        self.before_end: BeforeEnd | None = None

    def expire(self, session: Session, reason: str) -> None:
        """Start the end of one, for ``idle`` or ``age``; never waits."""
        if self.before_end is None:
            self._end(session, reason)
        elif session.session_id not in self._under_way:
            self._under_way.add(session.session_id)
            self._tasks.spawn(self._expire(session, reason), "session-save")

    async def save(self, session: Session, reason: str) -> None:
        """Save one that is about to end, where that is asked for."""
        if self.before_end is not None and not session.ending:
            await self.before_end(session, reason)

    async def _expire(self, session: Session, reason: str) -> None:
        used_ms = session.record.last_activity_ms
        try:
            await self.save(session, reason)
            # One that was used meanwhile lives on.
            if not session.ending and session.record.last_activity_ms == used_ms:
                self._end(session, reason)
        finally:
            self._under_way.discard(session.session_id)

    def _end(self, session: Session, reason: str) -> None:
        ending = self._begin(session, reason)
        if reason == "idle":
            ending.hurry.set()
