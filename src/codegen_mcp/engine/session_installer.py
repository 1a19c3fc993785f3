"""Puts a filled slot in its place as a session: a new one, or in the place of one that lives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from codegen_mcp.core.session import SessionConfig
from codegen_mcp.engine import session_store
from codegen_mcp.engine.durable import exchange, write_file
from codegen_mcp.engine.pause import busy
from codegen_mcp.engine.ports import OpensWorkspaces, TaskRecords
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_maker import SessionMaker, SessionRequest
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.engine.session_services import SessionServices
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.state_directory import StateDirectory
from codegen_mcp.engine.task_journal import FILE_NAME
from codegen_mcp.sandbox.volumes.threads import to_end

log = structlog.get_logger()

REPLACED = "the session was restored from a checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    """A session to be made from stored bytes."""

    session_id: str
    config: SessionConfig
    fill: Callable[[Slot], Awaitable[None]]
    """Puts the bytes into the slot; raises when they are not what they should be."""
    restored_from: str
    lost: str = ""
    journal: bytes = b""
    """Lines of its ``tasks.jsonl``."""
    epoch: int = 1
    """The ownership under which the session is held."""


class SessionInstaller:
    """The last step of a restore; until then nothing of it can be seen."""

    def __init__(
        self,
        *,
        state: StateDirectory,
        maker: SessionMaker,
        sessions: dict[str, Session],
        services: SessionServices,
        open_workspace: OpensWorkspaces,
        records: TaskRecords | None,
        discard: Callable[[Path, Slot | None], None],
    ) -> None:
        """Wire it up; ``sessions`` is shared with the pool."""
        self._state = state
        self._maker = maker
        self._sessions = sessions
        self._services = services
        self._open_workspace = open_workspace
        self._records = records
        self._discard = discard

    async def restore(self, plan: RestorePlan, request: SessionRequest) -> Session:
        """Boot a slot, fill it, and install it; a failure leaves no trace.

        Raises: as ``SessionMaker.slot``, ``plan.fill`` and ``install``.
        """
        slot = await self._maker.slot(request)
        try:
            await plan.fill(slot)
        except BaseException:
            self._discard(slot.directory, slot)
            raise
        living = self._sessions.get(plan.session_id)
        now_ms = self._services.clock.unix_ms()
        record = SessionRecord(
            session_id=plan.session_id,
            workspace_id=request.workspace_id,
            user_id=request.user_id,
            interpreter=request.interpreter.name,
            limits=request.limits,
            env=request.env,
            metadata=request.metadata,
            idle_timeout_s=request.idle_timeout_s,
            created_at_ms=now_ms if living is None else living.record.created_at_ms,
            last_activity_ms=now_ms,
            incarnation=1 if living is None else living.record.incarnation + 1,
            identity=slot.identity,
            durability=request.durability,
            auto_restore=request.auto_restore,
            checkpoint_interval_s=request.checkpoint_interval_s,
            allow_network=request.allow_network,
            allow_hosts=request.allow_hosts,
            restored_from=plan.restored_from,
            lost=plan.lost,
            epoch=plan.epoch,
        )
        session = await self.install(slot, record, plan.journal)
        log.info("session.restored", session_id=plan.session_id, checkpoint=plan.restored_from)
        return session

    async def install(self, slot: Slot, record: SessionRecord, journal: bytes) -> Session:
        """Make the slot the session of its record; a living one of that id gives way.

        The slot is the session's or in the trash when this returns or raises.

        Raises:
            WrongState: The living one has tasks under way; it stays as it is.
            OSError: The disk is full.
        """
        try:
            await to_end(lambda: _prepare(slot.directory, record, journal))
            old = self._sessions.get(record.session_id)
            if old is None:
                return self._place(slot, record)
            if old.active_tasks or old.ending:
                raise busy(record.session_id)
        except BaseException:
            self._discard(slot.directory, slot)
            raise
        return await self._replace(old, slot, record)

    def _place(self, slot: Slot, record: SessionRecord) -> Session:
        directory = self._state.session(record.session_id)
        slot.directory.rename(directory)
        slot.moved(directory)
        return self._open(slot, record)

    async def _replace(self, old: Session, slot: Slot, record: SessionRecord) -> Session:
        """Swap the directories in one step, so that at any moment one of the two is there."""
        hurry = asyncio.Event()
        hurry.set()
        old.close_door()
        try:
            # Shielded: a session without its door must not stay behind.
            await _shielded(old.end(hurry=hurry, grace_s=0.0, reason=REPLACED))
            place, aside = old.directory, slot.directory
            try:
                exchange(place, aside)
            except OSError:
                spare = self._state.new_trash()
                place.rename(spare)
                aside.rename(place)
                aside = spare
        except BaseException:
            self._discard(slot.directory, slot)
            record = replace(old.record, incarnation=old.record.incarnation + 1)
            workspace = self._open_workspace(old.slot)
            self._sessions[old.session_id] = Session(
                record, old.slot, workspace, self._services, adopted=True
            )
            raise
        slot.moved(place)
        old.slot.moved(aside)
        self._discard(aside, old.slot)
        if self._records is not None:
            self._records.forget(record.session_id)
        return self._open(slot, record)

    def _open(self, slot: Slot, record: SessionRecord) -> Session:
        recent = record.recent_tasks
        if self._records is not None:
            recent = tuple(self._records.recover(record.session_id, slot.directory)) or recent
        record = replace(record, recent_tasks=recent[:20])
        session = Session(record, slot, self._open_workspace(slot), self._services)
        self._sessions[record.session_id] = session
        return session


def _prepare(directory: Path, record: SessionRecord, journal: bytes) -> None:
    """Write what lies beside the files, durably."""
    if journal:
        write_file(directory / FILE_NAME, journal, durable=True)
    session_store.save(directory, record, durable=True)


async def _shielded(work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
