"""Copies sessions: as many children as were asked for, or none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from codegen_mcp.core.errors import Draining, Full, InvalidRequest
from codegen_mcp.core.ids import new_session_id
from codegen_mcp.engine import session_store
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.pause import busy
from codegen_mcp.engine.ports import OpensWorkspaces
from codegen_mcp.engine.run_line import Line
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_maker import RETRY_AFTER_S, full_when_refused, with_room
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.engine.session_services import SessionServices
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.slot_factory import SlotFactory
from codegen_mcp.engine.state_directory import StateDirectory
from codegen_mcp.engine.trash import Trash
from codegen_mcp.engine.warm_pool import WarmPool

log = structlog.get_logger()

MAX_COUNT = 64
COPIES_AT_ONCE = 2
"""Each has a thread of those that all sessions share."""


def check_count(count: int, new_ids: Sequence[str] = ()) -> int:
    """Accept how many children are asked for.

    Raises:
        InvalidRequest: It is not 1 to 64, or not the number of ids that are given.
    """
    if not 1 <= count <= MAX_COUNT:
        raise InvalidRequest(f"count={count!r} must be 1 to {MAX_COUNT}; fork again for more")
    if new_ids and len(new_ids) != count:
        raise InvalidRequest(
            f"{len(new_ids)} new session ids are given for {count} copies; give as many, or none"
        )
    return count


class SessionForker:
    """Copies sessions; admission by number is the pool's."""

    def __init__(
        self,
        *,
        sessions: dict[str, Session],
        state: StateDirectory,
        factory: SlotFactory,
        warm: WarmPool,
        trash: Trash,
        services: SessionServices,
        open_workspace: OpensWorkspaces,
        boots: Line,
        end: Callable[[Session], None],
    ) -> None:
        """Wire it up.

        Args:
            sessions: Those that live, by id; shared with the pool.
            state: Where children are made.
            factory: Makes their slots.
            warm: Gives up what waits where disk is short.
            trash: Takes what is left of a fork that failed.
            services: Shared by all sessions.
            open_workspace: Makes a child's file access.
            boots: The line that boots wait in.
            end: Begins the end of a child that was made and is not wanted any more.
        """
        self._sessions = sessions
        self._state = state
        self._factory = factory
        self._warm = warm
        self._trash = trash
        self._services = services
        self._open_workspace = open_workspace
        self._boots = boots
        self._end = end
        self._jobs = OwnedTasks()
        self._working = 0

    @property
    def working(self) -> bool:
        """Whether a fork is under way: nothing should be booted ahead, its disk is needed."""
        return self._working > 0

    async def aclose(self) -> None:
        """Cancel forks under way; nothing is left of them."""
        await self._jobs.aclose()

    async def fork(self, parent: Session, count: int, new_ids: Sequence[str] = ()) -> list[Session]:
        """Copy a session that is at rest ``count`` times.

        A child has the parent's files, limits, variables, metadata and timeouts; it has an id, a
        host user, a control group and a sandbox of its own, so random numbers of its own, too.
        Processes are not copied: no run leaves any, and those of the parent go on undisturbed. Its
        tasks are not the parent's: its sequence begins at 0. Runs and changes of files in the
        parent wait while its files are copied once; the other children are copied from the first.

        A caller that is cancelled returns once nothing is left of the children.

        Raises:
            WrongState: Tasks of the parent are under way (SESSION_BUSY).
            NotFound: It is being destroyed.
            Full: There is no disk or host user for all of them.
            SandboxUnavailable: A sandbox could not be booted.
            Draining: The worker is shutting down.
        """
        job = self._jobs.spawn(self._fork(parent, count, new_ids), "session-fork")
        cancelled = None
        while not job.done():
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError as error:
                cancelled = error
                job.cancel()
        if cancelled is not None:
            if not job.cancelled() and job.exception() is None:
                self._end_all(job.result())
            raise cancelled
        if job.cancelled():
            raise _draining()
        return job.result()

    async def _fork(self, parent: Session, count: int, new_ids: Sequence[str]) -> list[Session]:
        started = time.monotonic()
        slots: list[Slot] = []
        self._working += 1
        try:
            if parent.active_tasks:
                raise busy(parent.session_id)
            parent.touch()
            with full_when_refused():
                await with_room(lambda: self._check_room(parent, count), self._warm, self._trash)
                async with parent.still(freeze=False):
                    record = parent.record
                    sandbox = parent.slot.sandbox
                    if sandbox is not None and not sandbox.alive:
                        await sandbox.aclose()  # nothing that a lost one left writes any more
                    copying_s = -time.monotonic()
                    await self._copy(parent.slot, slots)
                    copying_s += time.monotonic()
                parent.check_open()
                limit = asyncio.Semaphore(COPIES_AT_ONCE)
                source = slots[0]
                await _all(self._copy(source, slots, limit) for _ in range(count - 1))
            await _all(self._boot(slot) for slot in slots)
            if self._services.gate.draining:
                raise _draining()
            made = self._place(slots, record, new_ids)
        except BaseException:
            for slot in slots:
                self._trash.put(slot.directory, slot)
            raise
        finally:
            self._working -= 1
        parent.touch()
        seconds = time.monotonic() - started
        for _ in made:
            self._services.hooks.session_created(pooled=False, seconds=seconds)
        log.info(
            "session.forked",
            session_id=parent.session_id,
            children=[child.session_id for child in made],
            milliseconds=round(seconds * 1000, 2),
            copying_ms=round(copying_s * 1000, 2),
        )
        return made

    async def _check_room(self, parent: Session, count: int) -> None:
        """Refuse before anything is copied; each copy is admitted once more by its volume."""
        needed = count * self._factory.footprint(parent.limits)
        free = self._factory.free_bytes()
        if needed > free:
            raise Full(
                f"{count} copies of session {parent.session_id!r} need {needed} bytes of disk, and "
                f"{free} can be promised; fork fewer, destroy sessions, or free space on the host",
                reason="DISK_FULL",
                retry_after_s=RETRY_AFTER_S,
            )

    async def _copy(
        self, source: Slot, slots: list[Slot], limit: asyncio.Semaphore | None = None
    ) -> None:
        """Add a copy to ``slots``."""
        async with limit or asyncio.Semaphore():
            slots.append(await with_room(lambda: self._copy_once(source), self._warm, self._trash))

    async def _copy_once(self, source: Slot) -> Slot:
        directory = self._state.new_slot()
        try:
            return await self._factory.clone(directory, source)
        except BaseException:
            self._trash.put(directory, None)
            raise

    async def _boot(self, slot: Slot) -> None:
        place = self._boots.join()
        try:
            await place.wait()
            slot.sandbox = await self._factory.boot(slot)
        finally:
            place.leave()

    def _place(
        self, slots: list[Slot], record: SessionRecord, new_ids: Sequence[str]
    ) -> list[Session]:
        """Make sessions of all slots, which are taken from the list, without a pause."""
        made: list[Session] = []
        try:
            while slots:
                session_id = new_ids[len(made)] if new_ids else new_session_id()
                now_ms = self._services.clock.unix_ms()
                child = replace(
                    record,
                    session_id=session_id,
                    created_at_ms=now_ms,
                    last_activity_ms=now_ms,
                    incarnation=1,
                    epoch=1,
                    identity=slots[0].identity,
                    recent_tasks=(),
                    restored_from="",
                    lost="",
                )
                # Before it has its place: a directory there without a record is of no use.
                session_store.save(slots[0].directory, child, durable=False)
                place = self._state.session(session_id)
                slots[0].directory.rename(place)
                slots[0].moved(place)
                workspace = self._open_workspace(slots[0])
                session = Session(child, slots.pop(0), workspace, self._services)
                self._sessions[session_id] = session
                made.append(session)
        except BaseException:
            self._end_all(made)
            raise
        return made

    def _end_all(self, sessions: list[Session]) -> None:
        for session in sessions:
            self._end(session)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all at once; the first error ends the others and is raised when they have ended."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _draining() -> Draining:
    return Draining("the worker is shutting down and takes no new sessions; use another one")
