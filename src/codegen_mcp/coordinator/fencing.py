"""What workers say they hold, compared with the directory: who may go on, who must end what.

Used where workers register and beat. A worker that was taken for dead and comes back is told which
sessions are not its own any more; one that was started again on its own files keeps those that
nobody took over meanwhile, under the next epoch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp.coordinator.directory.base import (
    Commit,
    Directory,
    Owner,
    RowState,
    SessionRow,
)
from codegen_mcp.coordinator.failover import Failover
from codegen_mcp.coordinator.routes import Routes

PAGE = 500
MOST_TOLD = 1000
"""Sessions in a heartbeat; with as many, those that are missing may be there all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """What becomes of the sessions that a worker says it holds when it registers."""

    granted: Mapping[str, int] = field(default_factory=dict)
    """Its own, with the epoch under which it holds them from now on; it must be told."""
    fenced: Sequence[str] = ()
    """Not its own any more: it ends them without saving."""


class Fencing:
    """Answers for the directory; of sessions that the directory never heard of it says nothing."""

    def __init__(self, routes: Routes, failover: Failover) -> None:
        self._routes = routes
        self._directory: Directory = routes.directory
        self._failover = failover
        self._missing: dict[Owner, frozenset[str]] = {}

    async def adopt(self, owner: Owner, held: Mapping[str, int]) -> Adoption:
        """A start registered; before its link is attached. ``held``: session to epoch.

        What its former starts held, and nobody took over, is its own again: the files are the same.
        """
        granted: dict[str, int] = {}
        fenced: list[str] = []
        for session_id, epoch in held.items():
            row = await self._directory.get(session_id)
            if row is None:
                continue
            if row.owner == owner and row.state in {RowState.LIVE, RowState.CREATING}:
                granted[session_id] = row.epoch  # said before; that word may have been lost
                continue
            taken = await self._take_back(row, owner, epoch)
            if taken is None:
                fenced.append(session_id)
            else:
                granted[session_id] = taken.epoch
        return Adoption(granted=granted, fenced=fenced)

    async def _take_back(self, row: SessionRow, owner: Owner, epoch: int) -> SessionRow | None:
        """Acquire it for the worker's new start; None where its copy is not the session any more.

        An epoch that its copy does not have (0 is a worker that knows of none) means that somebody
        else had the session since.
        """
        before = row.owner
        if before is None or before.worker_id != owner.worker_id:
            return None
        if epoch not in (row.epoch, 0) or row.state is RowState.ENDED:
            return None
        async with self._failover.lock(row.session_id):
            taken = await self._directory.acquire(row.session_id, owner, row.epoch)
            if taken is not None:
                self._routes.remember(taken)
                self._routes.note_kept(taken)
        return taken

    async def fenced(self, owner: Owner, held: Mapping[str, int]) -> list[str]:
        """Those of the sessions that a live start holds which are not its own any more."""
        own = await self._rows(owner)
        return await self._strangers(owner, own, held)

    async def report(
        self, owner: Owner, infos: Sequence[common_pb2.SessionInfo], *, whole: bool = True
    ) -> list[str]:
        """Take in what a heartbeat says of sessions; which of them the worker must end.

        New checkpoints become what the directory points to, and sessions that are not there any
        more (twice in a row, where the list is ``whole``) end in the directory too.
        """
        own = await self._rows(owner)
        await self._end_unfinished(own)
        commits: list[Commit] = []
        for info in infos:
            row = own.get(info.session_id)
            if row is None or info.epoch not in (row.epoch, 0):
                continue
            newer = info.last_checkpoint_id if info.last_checkpoint_id != row.checkpoint_id else ""
            if newer or info.last_sequence > row.sequence:
                commits.append(
                    Commit(
                        session_id=row.session_id,
                        epoch=row.epoch,
                        checkpoint_id=newer,
                        sequence=info.last_sequence,
                    )
                )
        if commits:
            await self._directory.commit(owner, commits)
        held = {info.session_id: info.epoch for info in infos}
        if whole and len(infos) < MOST_TOLD:
            await self._reconcile(owner, own, held)
        return await self._strangers(owner, own, held)

    async def _end_unfinished(self, own: Mapping[str, SessionRow]) -> None:
        """What an earlier coordinator was making when it died: nobody was told of it."""
        for row in own.values():
            if row.state is RowState.CREATING and row.session_id not in self._routes.making:
                await self._directory.end(row.session_id, row.epoch)

    async def _reconcile(
        self, owner: Owner, own: Mapping[str, SessionRow], held: Mapping[str, int]
    ) -> None:
        absent = frozenset(
            row.session_id
            for row in own.values()
            if row.state is RowState.LIVE
            and row.session_id not in held
            and not self._failover.lock(row.session_id).locked()
        )
        gone = absent & self._missing.get(owner, frozenset())
        self._missing = {
            known: names
            for known, names in self._missing.items()
            if self._routes.workers.find(known) is not None
        }
        self._missing[owner] = absent - gone
        for session_id in gone:
            await self._routes.ended_there(own[session_id])

    async def _strangers(
        self, owner: Owner, own: Mapping[str, SessionRow], held: Iterable[str]
    ) -> list[str]:
        """Those that the directory knows, and not as this worker's."""
        found = []
        for session_id in held:
            row = own.get(session_id)
            if row is None:
                row = await self._directory.get(session_id)
            if row is not None and (row.owner != owner or row.state is RowState.ENDED):
                found.append(session_id)
        return found

    async def _rows(self, owner: Owner) -> dict[str, SessionRow]:
        """Every session that the directory says it holds."""
        found: dict[str, SessionRow] = {}
        after = ""
        while True:
            page = await self._directory.sessions(owner=owner, after=after, limit=PAGE)
            found.update((row.session_id, row) for row in page)
            if len(page) < PAGE:
                return found
            after = page[-1].session_id
            await asyncio.sleep(0)
