"""A directory in memory: it lives as long as its object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import Self

from codegen_mcp.coordinator.directory.base import Commit, Owner, RowState, SessionRow
from codegen_mcp.coordinator.directory.checks import (
    check_new,
    exists_already,
    has_beaten,
    no_more_sessions,
)

_HELD = (RowState.CREATING, RowState.LIVE)


@dataclass(slots=True)
class _Worker:
    """What is known of the newest start of a worker; all before it are dead."""

    start_id: str
    incarnation: int = 1
    beats: int = 0
    dead: bool = False


class MemoryDirectory:
    """Implements ``Directory``.

    No method waits in the middle, so that each is one step for everybody on the same loop.
    """

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._rows: dict[str, SessionRow] = {}
        self._ended: dict[str, None] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    async def register(self, worker_id: str, start_id: str) -> int:
        """Count up for a start that is not the last one, or dead."""
        worker = self._workers.get(worker_id)
        if worker is None:
            worker = self._workers[worker_id] = _Worker(start_id)
        elif worker.start_id != start_id or worker.dead:
            self._lose(Owner(worker_id=worker_id, incarnation=worker.incarnation))
            worker = _Worker(start_id, worker.incarnation + 1)
            self._workers[worker_id] = worker
        return worker.incarnation

    async def beat(self, owner: Owner) -> bool:
        """Count, for the one that lives."""
        if not self._lives(owner):
            return False
        self._workers[owner.worker_id].beats += 1
        return True

    async def beats(self) -> Mapping[Owner, int]:
        """A copy."""
        return {
            Owner(worker_id=worker_id, incarnation=worker.incarnation): worker.beats
            for worker_id, worker in self._workers.items()
            if not worker.dead
        }

    async def declare_dead(
        self, owner: Owner, *, at_beat: int | None = None
    ) -> Sequence[SessionRow]:
        """Its sessions are lost in the same step."""
        if self._lives(owner):
            worker = self._workers[owner.worker_id]
            if at_beat not in (None, worker.beats):
                raise has_beaten(owner)
            worker.dead = True
            self._lose(owner)
        return [
            row
            for _, row in sorted(self._rows.items())
            if row.owner == owner and row.state is RowState.LOST
        ]

    async def reserve(self, row: SessionRow, *, max_sessions: int = 0) -> bool:
        """Checked and inserted in one step."""
        check_new(row)
        if not self._lives(row.owner):
            return False
        if row.session_id in self._rows:
            raise exists_already(row)
        if max_sessions:
            mine = [
                other.adhoc
                for other in self._rows.values()
                if other.principal == row.principal and other.state is not RowState.ENDED
            ]
            if mine.count(False) + bool(row.adhoc or any(mine)) + (not row.adhoc) > max_sessions:
                raise no_more_sessions(row, max_sessions)
        self._rows[row.session_id] = row
        return True

    async def confirm(self, session_id: str, owner: Owner, epoch: int) -> bool:
        """As held."""
        row = self._held(session_id, owner, epoch)
        if row is None:
            return False
        self._rows[session_id] = replace(row, state=RowState.LIVE)
        return True

    async def acquire(
        self, session_id: str, owner: Owner, expected_epoch: int
    ) -> SessionRow | None:
        """Compared and replaced in one step."""
        row = self._rows.get(session_id)
        if (
            row is None
            or row.state is RowState.ENDED
            or row.epoch != expected_epoch
            or self._lives(row.owner)
            or not self._lives(owner)
        ):
            return None
        taken = replace(row, owner=owner, epoch=row.epoch + 1, state=RowState.LIVE)
        self._rows[session_id] = taken
        return taken

    async def commit(self, owner: Owner, commits: Sequence[Commit]) -> Sequence[bool]:
        """One after the other."""
        return [self._commit(owner, one) for one in commits]

    async def release(self, session_id: str, owner: Owner, epoch: int) -> bool:
        """As held."""
        row = self._held(session_id, owner, epoch)
        if row is None:
            return False
        self._rows[session_id] = replace(row, owner=None)
        return True

    async def end(self, session_id: str, epoch: int) -> bool:
        """Whoever holds it."""
        row = self._rows.get(session_id)
        if row is None or row.epoch != epoch:
            return False
        self._rows[session_id] = replace(row, owner=None, state=RowState.ENDED)
        self._ended.setdefault(session_id)
        return True

    async def get(self, session_id: str) -> SessionRow | None:
        """As it is now."""
        return self._rows.get(session_id)

    async def sessions(
        self,
        *,
        principal: str | None = None,
        owner: Owner | None = None,
        live_only: bool = True,
        after: str = "",
        limit: int = 500,
    ) -> Sequence[SessionRow]:
        """Sorts all of them at each call."""
        found = (
            row
            for session_id, row in sorted(self._rows.items())
            if session_id > after
            and principal in (None, row.principal)
            and owner in (None, row.owner)
            and not (live_only and row.state is RowState.ENDED)
        )
        return list(islice(found, limit))

    async def forget(self, keep: int) -> int:
        """In the order in which they ended."""
        going = list(islice(self._ended, max(0, len(self._ended) - keep)))
        for session_id in going:
            del self._rows[session_id], self._ended[session_id]
        return len(going)

    def _lives(self, owner: Owner | None) -> bool:
        worker = None if owner is None else self._workers.get(owner.worker_id)
        return (
            worker is not None
            and owner is not None
            and worker.incarnation == owner.incarnation
            and not worker.dead
        )

    def _held(self, session_id: str, owner: Owner, epoch: int) -> SessionRow | None:
        """Return the row, if this owner lives and holds it under this epoch."""
        row = self._rows.get(session_id)
        if (
            row is None
            or row.owner != owner
            or row.epoch != epoch
            or row.state not in _HELD
            or not self._lives(owner)
        ):
            return None
        return row

    def _lose(self, owner: Owner) -> None:
        for session_id, row in self._rows.items():
            if row.owner == owner and row.state in _HELD:
                self._rows[session_id] = replace(row, state=RowState.LOST)

    def _commit(self, owner: Owner, one: Commit) -> bool:
        row = self._held(one.session_id, owner, one.epoch)
        if row is None:
            return False
        self._rows[one.session_id] = replace(
            row,
            checkpoint_id=one.checkpoint_id or row.checkpoint_id,
            sequence=max(row.sequence, one.sequence),
        )
        return True
