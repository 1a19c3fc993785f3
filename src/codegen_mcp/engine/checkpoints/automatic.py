"""Checkpoints that nobody asks for at that moment: at intervals, turns, and before an end."""

from __future__ import annotations

import asyncio
from types import TracebackType

import structlog

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.core.session import Durability
from codegen_mcp.engine.checkpoints.checkpointer import Checkpointer
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_pool import SessionPool
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.engine.task_ports import TaskSession
from codegen_mcp.tools.base import ToolSpec

log = structlog.get_logger()

LOOK_S = 0.25
"""How often it is looked for sessions that should be saved."""
AT_ONCE = 2
RETRY_S = 30.0
"""How long a session whose save failed is left alone."""


class AutoSaver:
    """Saves what its sessions ask for. An async context manager; implements ``SavesTurns``.

    A session is changed when it was used since its last save began, or is in use. One that asks for
    ``auto_restore`` is also saved before it ends for idleness or age, and when the worker drains.
    """

    def __init__(self, sessions: SessionPool, checkpoints: Checkpointer, clock: Clock) -> None:
        self._sessions = sessions
        self._checkpoints = checkpoints
        self._clock = clock
        self._saved: dict[str, tuple[int, float]] = {}
        """Last use that is saved (Unix ms), and when that was begun (monotonic s)."""
        self._blocked: dict[str, float] = {}
        self._busy: set[str] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks = OwnedTasks()

    async def __aenter__(self) -> AutoSaver:
        """Begin to look."""
        self._sessions.expiry.before_end = self.before_end
        self._tasks.spawn(self._run(), "auto-save")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop looking, and what is under way."""
        self._sessions.expiry.before_end = None
        await self._tasks.aclose()

    def wanted(self, session: TaskSession, spec: ToolSpec) -> bool:
        """Whether a task's end waits for a save."""
        return session.durability == Durability.SYNC and not spec.read_only

    async def save(self, session: TaskSession) -> None:
        """Save a session now, on top of its last checkpoint."""
        await self._save(self._sessions.session(session.session_id), "sync")

    async def before_end(self, session: Session, reason: str) -> None:
        """Save a changed session that wants to be restored; never raises."""
        record = session.record
        if record.auto_restore and self._changed(session, record):
            await self._try(session, reason if reason in ("idle", "drain") else "idle")

    async def sweep(self) -> None:
        """Start what is due now."""
        now = self._clock.monotonic()
        living = {session.session_id for session in self._sessions.living}
        for known in (self._saved, self._blocked):
            for gone in known.keys() - living:
                del known[gone]
        for session in self._sessions.living:
            session_id, record = session.session_id, session.record
            # One that was used before it was first seen here has something to save.
            self._saved.setdefault(session_id, (record.created_at_ms, now))
            if session_id in self._busy or self._blocked.get(session_id, 0.0) > now:
                continue
            trigger = self._due(session, record, now)
            if trigger:
                self._busy.add(session_id)
                self._tasks.spawn(self._one(session, trigger), "auto-save-one")

    def _due(self, session: Session, record: SessionRecord, now: float) -> str:
        if not self._changed(session, record):
            return ""
        if record.durability == Durability.TURN and not session.active_tasks:
            return "turn"
        interval_s = record.checkpoint_interval_s
        if interval_s and now - self._saved[session.session_id][1] >= interval_s:
            return "interval"
        return ""

    def _changed(self, session: Session, record: SessionRecord) -> bool:
        saved = self._saved.get(session.session_id)
        used = saved is None or record.last_activity_ms > saved[0]
        return used or session.active_tasks > 0

    async def _one(self, session: Session, trigger: str) -> None:
        try:
            async with self._slots:
                await self._try(session, trigger)
        finally:
            self._busy.discard(session.session_id)

    async def _try(self, session: Session, trigger: str) -> None:
        try:
            await self._save(session, trigger)
        except WorkerError as error:
            self._blocked[session.session_id] = self._clock.monotonic() + RETRY_S
            log.warning(
                "checkpoint.not_saved_by_itself",
                session_id=session.session_id,
                trigger=trigger,
                reason=error.reason,
            )

    async def _save(self, session: Session, trigger: str) -> None:
        begun = session.record.last_activity_ms, self._clock.monotonic()
        await self._checkpoints.save(session.session_id, incremental=True, trigger=trigger)
        self._saved[session.session_id] = begun

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.sweep()
            except Exception:
                log.exception("checkpoint.sweep_failed")
