"""Ends sessions that nobody uses or that are too old, and keeps their records fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.session import Session

log = structlog.get_logger()

SAMPLE_S = 10.0
"""How often counters are read, so that rates and peaks are known between status calls."""
PERSIST_S = 60.0
"""How old the stored time of the last use may get."""

Expire = Callable[[Session, str], None]
Persist = Callable[[Session], Awaitable[None]]


class Reaper:
    """Looks at every session once in an interval. An async context manager."""

    def __init__(
        self,
        *,
        sessions: Callable[[], Sequence[Session]],
        expire: Expire,
        persist: Persist,
        clock: Clock,
        max_age_s: float,
        interval_s: float,
    ) -> None:
        """Wire it up.

        Args:
            sessions: Those that live.
            expire: Starts the end of one, for ``idle`` or ``age``; never waits.
            persist: Stores the record of one, durably.
            clock: Times the sampling.
            max_age_s: After this a session ends, in use or not.
            interval_s: Between two sweeps.
        """
        self._sessions = sessions
        self._expire = expire
        self._persist = persist
        self._clock = clock
        self._max_age_s = max_age_s
        self._interval_s = interval_s
        self._sampled = clock.monotonic()
        self._tasks = OwnedTasks()

    async def __aenter__(self) -> Reaper:
        """Begin to sweep."""
        self._tasks.spawn(self._run(), "reaper")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self._tasks.aclose()

    async def sweep(self) -> None:
        """Look at every session once."""
        now = self._clock.monotonic()
        sample = now - self._sampled >= SAMPLE_S
        if sample:
            self._sampled = now
        for session in self._sessions():
            if session.ending:
                continue
            if session.age_s >= self._max_age_s:
                self._expire(session, "age")
            elif session.idle_s >= session.idle_timeout_s:
                self._expire(session, "idle")
            else:
                _ = session.state  # notices a sandbox that ended by itself
                if sample:
                    session.sample()
                    await asyncio.sleep(0)
                if session.unsaved_s >= PERSIST_S:
                    await self._save(session)

    async def _save(self, session: Session) -> None:
        try:
            await self._persist(session)
        except WorkerError as error:
            log.warning("session.not_saved", session_id=session.session_id, reason=error.reason)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.sweep()
            except Exception:
                log.exception("reaper.sweep_failed")
