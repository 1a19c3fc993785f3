"""Ends sessions: for good, or so that the worker's next start can adopt them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from codegen_mcp.core.errors import WorkerError
from codegen_mcp.engine.hooks import EngineHooks
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.ports import TaskRecords
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.slot_factory import SlotFactory

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ending:
    """An end under way."""

    work: asyncio.Task[None]
    hurry: asyncio.Event
    """Set it and its tasks are not waited for any more."""


class SessionEnder:
    """Takes sessions out of ``sessions`` once nothing of them runs."""

    def __init__(
        self,
        *,
        sessions: dict[str, Session],
        factory: SlotFactory,
        records: TaskRecords | None,
        discard: Callable[[Path, Slot | None], None],
        ended: Callable[[], None],
        hooks: EngineHooks,
        tasks: OwnedTasks,
        grace_s: float,
    ) -> None:
        """Wire it up.

        Args:
            sessions: Those that live, by id; shared with the pool.
            factory: Takes slots apart.
            records: Forgets an ended session's tasks.
            discard: Takes a directory, and the slot that it was, to the trash.
            ended: Called after each end: there is room now.
            hooks: Hears of each end.
            tasks: Owns the ends under way.
            grace_s: How long the tasks of a gently ended session may go on.
        """
        self._sessions = sessions
        self._factory = factory
        self._records = records
        self._discard = discard
        self._ended = ended
        self._hooks = hooks
        self._tasks = tasks
        self._grace_s = grace_s
        self._endings: dict[str, Ending] = {}

    def begin(self, session: Session, reason: str) -> Ending:
        """Close its door now and start its end, or join the end under way."""
        ending = self._endings.get(session.session_id)
        if ending is None:
            session.close_door()
            hurry = asyncio.Event()
            work = self._tasks.spawn(self._end(session, reason, hurry), "session-end")
            ending = self._endings[session.session_id] = Ending(work, hurry)
        return ending

    async def settled(self) -> None:
        """Return when no end is under way."""
        while self._endings:
            await asyncio.wait([ending.work for ending in self._endings.values()])

    async def put_down(self, sessions: Sequence[Session]) -> None:
        """End everything of sessions but their files and their records; never raises."""
        ends = [self._put_down(session) for session in sessions]
        for error in await asyncio.gather(*ends, return_exceptions=True):
            if error is not None:
                log.error("session.not_put_down", error=repr(error))

    async def _put_down(self, session: Session) -> None:
        if session.ending:
            return
        hurry = asyncio.Event()
        hurry.set()
        await session.end(hurry=hurry, grace_s=0.0, reason="the worker is shutting down")
        try:
            await session.save()
        except WorkerError:
            log.exception("session.not_saved", session_id=session.session_id)
        await self._factory.dismantle(session.slot)
        await self._factory.release(session.slot.identity)
        del self._sessions[session.session_id]

    async def _end(self, session: Session, reason: str, hurry: asyncio.Event) -> None:
        started = time.monotonic()
        session_id = session.session_id
        try:
            await session.end(
                hurry=hurry, grace_s=self._grace_s, reason="the session was destroyed"
            )
        finally:
            self._discard(session.directory, session.slot)
            del self._sessions[session_id]
            del self._endings[session_id]
            if self._records is not None:
                self._records.forget(session_id)
            self._ended()
            seconds = time.monotonic() - started
            self._hooks.session_destroyed(reason=reason, seconds=seconds)
            log.info("session.destroyed", session_id=session_id, reason=reason)
