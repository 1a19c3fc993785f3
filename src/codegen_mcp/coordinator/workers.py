"""The live view of the workers: who is here, how to reach them, and who was lost.

A start of a worker is registered, linked, beats, and ends in one of four ways: it fell silent, it
left, a later start of the same worker replaced it, or another coordinator declared it dead. In each
case its link is closed first, so that nothing late gets through, and then the listeners are told
which sessions are LOST with it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import structlog

from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.directory.base import Directory, Owner, SessionRow
from codegen_mcp.coordinator.silence import GAP_PART, Silence
from codegen_mcp.coordinator.worker_view import Load, Registration, Worker
from codegen_mcp.core.clock import BoottimeClock, Clock
from codegen_mcp.core.errors import AlreadyExists, Conflict, InvalidRequest, Unavailable

log = structlog.get_logger()

READINGS = 12
"""Of the directory in ``lost_after_s``."""

CLOSE_S = 5.0
"""For letting go of a link; what then still hangs is left to its own end."""


STARTS = 32
"""Of a worker, that are known to be replaced; enough to tell two workers with one id apart."""


class Cause(StrEnum):
    """Why a start was lost."""

    SILENT = "silent"
    LEFT = "left"
    REPLACED = "replaced"
    DECLARED = "declared"
    """By another coordinator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A start that is dead for ever."""

    owner: Owner
    cause: Cause
    sessions: Sequence[SessionRow]
    """LOST with it, and not taken over when this was read. Rows may be told of again."""


LostListener = Callable[[Lost], Awaitable[None]]
"""Runs in a task of ``Workers``; several may run at once. An error is logged and ends there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersConfig:
    """When a worker counts as lost."""

    beat_s: float = 2.0
    """Between two heartbeats, as told to the workers."""
    lost_after_s: float = 12.0
    """Of silence that was listened to."""

    def __post_init__(self) -> None:
        if not 0 < self.beat_s <= self.lost_after_s * GAP_PART:
            raise InvalidRequest(
                f"a worker that beats every {self.beat_s!r} s cannot be called lost after "
                f"{self.lost_after_s!r} s; give it at least three beats"
            )


class Workers:
    """An async context manager; it owns the observer, the links and the listeners' tasks."""

    def __init__(
        self,
        directory: Directory,
        config: WorkersConfig | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.config = config or WorkersConfig()
        self._directory = directory
        self._clock = clock or BoottimeClock()
        self._silence = Silence(self.config.lost_after_s)
        self._by_id: dict[str, Worker] = {}
        self._live: Set[Owner] = frozenset()
        self._replaced: dict[str, deque[str]] = {}
        """The last starts before the one that is here, by worker."""
        self._listeners: list[LostListener] = []
        self._changed = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._start(self._observe())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)
        workers, self._by_id = list(self._by_id.values()), {}
        await asyncio.gather(*(_close(worker.link) for worker in workers))

    def on_lost(self, listener: LostListener) -> None:
        """Tell this listener of every start that is lost from now on."""
        self._listeners.append(listener)

    # ---- what workers do

    async def register(self, registration: Registration) -> Worker:
        """Take in a start; the same start again keeps its incarnation, link and load.

        A later start of the same worker replaces the one before, whose link is closed here. The
        sessions of that one are told as lost when the new start is linked: until then it may take
        back those that it still holds.

        Raises:
            InvalidRequest: No worker_id.
            AlreadyExists: A start that was replaced came back while the one that replaced it is
            alive: two workers have the same id.
        """
        worker_id = registration.worker_id
        if not worker_id:
            raise InvalidRequest("a worker registers with an empty worker_id; give it one")
        start_id = registration.start_id or secrets.token_hex(16)
        if start_id in self._replaced.get(worker_id, ()) and worker_id in self._by_id:
            raise AlreadyExists(
                f"worker id {worker_id!r} was taken over by a later start that is alive; "
                "give each worker an id of its own (WORKER_ID)"
            )
        incarnation = await self._directory.register(worker_id, start_id)
        owner = Owner(worker_id=worker_id, incarnation=incarnation)
        before = self._by_id.get(worker_id)
        if before is not None and before.owner == owner:
            before.registration = registration
            return before
        if before is not None and before.owner.incarnation > incarnation:
            raise Conflict(f"worker {worker_id!r} registered a later start meanwhile; try again")
        worker = Worker(owner, registration, start_id=start_id)
        self._by_id[worker_id] = worker
        if before is not None:
            self._replaced.setdefault(worker_id, deque(maxlen=STARTS)).append(before.start_id)
            await _close(before.link)
        log.info("worker.registered", worker=worker_id, incarnation=incarnation)
        return worker

    async def attach(self, owner: Owner, link: WorkerLink) -> None:
        """Reach a start by this link from now on; one before it is closed.

        Raises:
            Unavailable: That start is not here (any more); the link is closed.
        """
        worker = self.find(owner)
        if worker is None:
            await _close(link)
            raise gone(owner)
        before, worker.link = worker.link, link
        if before is not None and before is not link:
            await _close(before)
        self._tell_of_earlier(worker)
        self._notify()

    async def detach(self, owner: Owner, link: WorkerLink) -> None:
        """This link broke: close it. The start lives on until it is silent or linked again."""
        worker = self.find(owner)
        if worker is not None and worker.link is link:
            worker.link = None
        await _close(link)

    async def beat(self, owner: Owner, load: Load | None = None) -> bool:
        """Count a sign of life; False when that start must register again.

        True only after the directory has it: a worker may rely on what that means.
        """
        worker = self.find(owner)
        if worker is None:
            return False
        try:
            alive = await self._directory.beat(owner)
        except BaseException:
            # Nobody's beats may count now: that is no silence of the workers.
            self._silence.restart()
            raise
        if not alive:
            self._lose(owner, Cause.DECLARED)
            return False
        if load is not None:
            worker.learn(load)
        return True

    async def drop(self, owner: Owner) -> None:
        """A start leaves for good; what it still holds is LOST. Idempotent."""
        self._lose(owner, Cause.LEFT, await self._directory.declare_dead(owner))

    # ---- what the gateway asks

    def find(self, owner: Owner) -> Worker | None:
        """The start, if it is here: registered, and not lost."""
        worker = self._by_id.get(owner.worker_id)
        return worker if worker is not None and worker.owner == owner else None

    def named(self, worker_id: str) -> Worker | None:
        """The newest start of a worker, if it is here."""
        return self._by_id.get(worker_id)

    def all(self) -> Sequence[Worker]:
        """Every start that is here, linked or not."""
        return list(self._by_id.values())

    async def reach(self, owner: Owner) -> WorkerLink:
        """The link of a start, as soon as there is one; bound it with ``asyncio.timeout``.

        A start that this coordinator has not seen since it began itself is waited for as well,
        until it registers, or is lost.

        Raises:
            Unavailable: That start is dead (reason WORKER_LOST).
        """
        while True:
            changed = self._changed
            worker = self.find(owner)
            if worker is None and owner not in await self._directory.beats():
                raise gone(owner)
            if worker is not None and worker.link is not None:
                return worker.link
            await changed.wait()

    # ---- the observer

    async def look(self) -> None:
        """Read the directory once, and lose whoever is silent or was declared dead by others."""
        here = {worker.owner for worker in self._by_id.values()}
        asked = self._clock.monotonic()
        beats = await self._directory.beats()
        silent = self._silence.hear(beats, asked=asked, answered=self._clock.monotonic())
        for owner, at_beat in silent.items():
            try:
                rows = await self._directory.declare_dead(owner, at_beat=at_beat)
            except Conflict:
                continue
            self._lose(owner, Cause.SILENT, rows)
        for owner in here - beats.keys():
            self._lose(owner, Cause.DECLARED)
        if beats.keys() != self._live:
            self._live = beats.keys()
            self._notify()

    async def _observe(self) -> None:
        while True:
            try:
                await self.look()
            except Exception as error:
                self._silence.restart()
                log.warning("workers.look_failed", error=str(error))
            await asyncio.sleep(self.config.lost_after_s / READINGS)

    # ---- how a start ends

    def _lose(self, owner: Owner, cause: Cause, rows: Sequence[SessionRow] | None = None) -> None:
        """Take a dead start out of the view, and tell; ``rows`` where they were read already."""
        worker = self.find(owner)
        if worker is not None:
            del self._by_id[owner.worker_id]
            self._replaced.pop(owner.worker_id, None)
            self._tell_of_earlier(worker)
        elif not rows:
            return
        log.warning(
            "worker.lost", worker=owner.worker_id, incarnation=owner.incarnation, cause=cause
        )
        link = None if worker is None else worker.link
        self._start(self._tell(owner, cause, link=link, rows=rows))
        self._notify()

    def _tell_of_earlier(self, worker: Worker) -> None:
        """Once for each start: the one before it is dead, whoever noticed that first."""
        if worker.told_of_earlier or worker.owner.incarnation == 1:
            return
        worker.told_of_earlier = True
        earlier = Owner(worker_id=worker.worker_id, incarnation=worker.owner.incarnation - 1)
        self._start(self._tell(earlier, Cause.REPLACED))

    async def _tell(
        self,
        owner: Owner,
        cause: Cause,
        *,
        link: WorkerLink | None = None,
        rows: Sequence[SessionRow] | None = None,
    ) -> None:
        await _close(link)
        try:
            if rows is None:
                rows = await self._directory.declare_dead(owner)
        except Exception as error:
            log.warning("worker.lost_sessions_unread", worker=owner.worker_id, error=str(error))
            return
        lost = Lost(owner=owner, cause=cause, sessions=rows)
        for listener in self._listeners:
            try:
                await listener(lost)
            except Exception:
                log.exception("worker.lost_listener_failed", worker=owner.worker_id)

    def _notify(self) -> None:
        """Wake whoever waits for a link."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def gone(owner: Owner) -> Unavailable:
    """Of a call to a start that is dead, or was never seen."""
    return Unavailable(
        f"worker {owner.worker_id!r}, incarnation {owner.incarnation}, is lost",
        reason="WORKER_LOST",
    )


async def _close(link: WorkerLink | None) -> None:
    if link is None:
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            await link.close()
    except Exception as error:
        log.warning("link.close_failed", worker=link.worker_id, error=repr(error))
