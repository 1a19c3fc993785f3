"""From a principal and a session to the worker that holds it.

The directory is asked once for each session; after that its row is remembered while its owner's
link is up. Whatever changes a row here forgets it, and a worker that does not hold a session under
the epoch it is called with says so: then the directory is asked again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.directory.base import Directory, Owner, RowState, SessionRow
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.workers import Workers
from codegen_mcp.core.checkpoint import parse_checkpoint_id
from codegen_mcp.core.errors import Unavailable

REMEMBERED = 100_000
"""Rows; about half a kilobyte each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """Times and bounds of the gateway."""

    wait_s: float = 15.0
    """How long a call waits for the worker of its session to come back, or to be lost."""
    restores_at_once: int = 4
    """Of sessions that come back by themselves when their worker is lost."""
    keep_ended: int = 100_000
    """Ended sessions whose checkpoints and artifacts are still known as their principal's."""

    def __post_init__(self) -> None:
        if self.wait_s <= 0 or self.restores_at_once < 1 or self.keep_ended < 0:
            raise ValueError(f"{self} has a bound below its least")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A session with the link to whoever holds it."""

    row: SessionRow
    owner: Owner
    link: WorkerLink
    restored: str = ""
    """Said where this call brought it back from a checkpoint; else empty."""


Revive = Callable[[SessionRow], Awaitable[Held]]
"""Brings a session back that nobody live holds."""


class Routes:
    """Finds sessions. What is another principal's is told like what never was."""

    def __init__(self, directory: Directory, workers: Workers, config: RouterConfig) -> None:
        self.directory = directory
        self.workers = workers
        self.config = config
        self._rows: OrderedDict[str, SessionRow] = OrderedDict()
        self._kept: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.making: set[str] = set()
        """Sessions that are being made by this process at this moment."""
        self.adhoc: OrderedDict[str, None] = OrderedDict()
        """Sessions that calls made by themselves, the one unused for longest first."""

    async def row(
        self, principal: Principal, session_id: str, *, ended: bool = False
    ) -> SessionRow:
        """The principal's session.

        Args:
            principal: Who asks.
            session_id: Whatever they sent.
            ended: Whether one that has ended will do.

        Raises:
            NotFound: There is none that is theirs.
        """
        row = self._rows.get(session_id)
        if row is None or row.principal != principal.name:
            # Also another's that is remembered: what never was takes the same time.
            row = await self.directory.get(session_id) if session_id else None
            if row is not None and row.state is not RowState.ENDED:
                self.remember(row)
        if row is None or row.principal != principal.name:
            raise refusals.no_session(session_id)
        if row.state is RowState.ENDED and not ended:
            raise refusals.no_session(session_id)
        return row

    def remember(self, row: SessionRow) -> None:
        """Note what a row is now."""
        self._rows[row.session_id] = row
        self._rows.move_to_end(row.session_id)
        while len(self._rows) > REMEMBERED:
            self._rows.popitem(last=False)
        if row.adhoc:
            self.adhoc[row.session_id] = None

    def forget(self, session_id: str) -> None:
        """Ask the directory the next time."""
        self._rows.pop(session_id, None)

    def lock(self, session_id: str) -> asyncio.Lock:
        """Held while a session changes hands: its row may name a worker that has it not yet."""
        lock = self._locks.get(session_id)
        if lock is None:
            lock = self._locks[session_id] = asyncio.Lock()
        return lock

    def changing(self, session_id: str) -> bool:
        """Whether it changes hands at this moment."""
        lock = self._locks.get(session_id)
        return lock is not None and lock.locked()

    async def settled(self, session_id: str) -> None:
        """Return when it does not change hands."""
        while (lock := self._locks.get(session_id)) is not None and lock.locked():
            async with lock:
                pass

    def note_kept(self, row: SessionRow) -> None:
        """Its files stayed as they were when this epoch began."""
        first, last = self._kept.get(row.session_id, (0, 0))
        self._kept[row.session_id] = (first if last == row.epoch - 1 else row.epoch - 1, row.epoch)
        self._kept.move_to_end(row.session_id)
        while len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)

    def same_files(self, then: SessionRow, now: SessionRow) -> bool:
        """Whether it is known that the files were never put back between two epochs."""
        first, last = self._kept.get(now.session_id, (0, 0))
        return then.epoch == now.epoch or first <= then.epoch <= now.epoch <= last

    def linked(self, row: SessionRow) -> WorkerLink | None:
        """The link to whoever holds it, if there is one at this moment."""
        if row.owner is None or row.state is not RowState.LIVE:
            return None
        worker = self.workers.find(row.owner)
        return None if worker is None else worker.link

    async def held(self, principal: Principal, session_id: str, revive: Revive) -> Held:
        """The session and its link; waits for a worker that is away, revives what is lost.

        Raises:
            NotFound: There is no such session, or it was lost (reason SESSION_LOST).
            Unavailable: Its worker is away for longer than ``wait_s``.
        """
        row = await self.row(principal, session_id)  # first, so that others' ids are told nothing
        if self.changing(session_id):
            await self.settled(session_id)
            self.forget(session_id)
            row = await self.row(principal, session_id)
        link = None if self.changing(session_id) else self.linked(row)
        if row.adhoc:
            self.adhoc[session_id] = None
            self.adhoc.move_to_end(session_id)
        if link is not None and row.owner is not None:
            return Held(row=row, owner=row.owner, link=link)
        try:
            async with asyncio.timeout(self.config.wait_s):
                while True:
                    await self.settled(session_id)
                    self.forget(session_id)
                    row = await self.row(principal, session_id)
                    if self.changing(session_id):
                        continue
                    awaited = self._awaited(row)
                    if awaited is None:
                        break
                    try:
                        link = await self.workers.reach(awaited)
                    except Unavailable:
                        continue  # it is dead, and the row says so now
                    if awaited == row.owner and not self.changing(session_id):
                        return Held(row=row, owner=awaited, link=link)
        except TimeoutError:
            raise refusals.worker_away(session_id, self.config.wait_s) from None
        return await revive(row)

    def _awaited(self, row: SessionRow) -> Owner | None:
        """The start whose link decides what becomes of the session; None where nobody's does."""
        if row.owner is None:
            return None
        if row.state is not RowState.LOST:
            return row.owner
        newer = self.workers.named(row.owner.worker_id)
        if newer is not None and newer.owner != row.owner and newer.link is None:
            return newer.owner  # it has just registered, and may still have the session
        return None

    async def drop_hold(self, row: SessionRow) -> None:
        """Its holder turns out not to have it under this epoch: let it be taken over again."""
        self.forget(row.session_id)
        if row.owner is not None and not self.changing(row.session_id):
            await self.directory.release(row.session_id, row.owner, row.epoch)

    async def ended_there(self, row: SessionRow) -> bool:
        """Its holder has it no more; whether it may be brought back from a checkpoint.

        It idled out or grew too old; or it was taken over, and its restore never came to be.
        """
        self.forget(row.session_id)
        if self.changing(row.session_id):
            return True  # it was asked for where it is only just being restored
        now = await self.directory.get(row.session_id)
        if now is None or now.epoch != row.epoch or now.owner is None:
            return True
        if row.auto_restore or never_restored(now):
            return await self.directory.release(row.session_id, now.owner, now.epoch)
        await self.directory.end(row.session_id, row.epoch)
        return False


def never_restored(row: SessionRow) -> bool:
    """Whether its holder may have died, or lost its word, between taking it and restoring it."""
    if not row.checkpoint_id:
        return False
    return parse_checkpoint_id(row.checkpoint_id).epoch < row.epoch
