"""Workers that shut down: their sessions go to others before they are gone."""

from __future__ import annotations

import asyncio

import structlog

from codegen_mcp.coordinator.directory.base import Owner, RowState
from codegen_mcp.coordinator.moving import Mover
from codegen_mcp.coordinator.routes import Held, Routes
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.engine.owned_tasks import OwnedTasks

log = structlog.get_logger()

LOOK_S = 0.5
"""Between two looks at who drains, and at sessions that were busy."""
PAGE = 500


class Drainer:
    """Takes idle sessions off draining workers, and busy ones as soon as they are idle.

    Those that asked for it (``auto_restore``) are brought back elsewhere at once; the others when
    they are next used.
    """

    def __init__(self, routes: Routes, mover: Mover, tasks: OwnedTasks) -> None:
        self._routes = routes
        self._mover = mover
        self._tasks = tasks
        self._under_way: set[Owner] = set()
        self._at_once = asyncio.Semaphore(routes.config.restores_at_once)

    async def watch(self) -> None:
        """Look for workers that drain, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            for worker in self._routes.workers.all():
                leaves = worker.load is not None and worker.load.draining
                if leaves and worker.link is not None and worker.owner not in self._under_way:
                    self._under_way.add(worker.owner)
                    self._tasks.spawn(self._empty(worker.owner), "worker-empty")

    async def _empty(self, owner: Owner) -> None:
        """Move what can be moved; begun again by the next look."""
        try:
            after = ""
            while True:
                rows = await self._routes.directory.sessions(owner=owner, after=after, limit=PAGE)
                held = []
                for row in rows:
                    link = self._routes.linked(row)
                    if row.state is RowState.LIVE and link is not None:
                        held.append(Held(row=row, owner=owner, link=link))
                await asyncio.gather(*map(self._move, held))
                if len(rows) < PAGE:
                    return
                after = rows[-1].session_id
        finally:
            self._under_way.discard(owner)

    async def _move(self, held: Held) -> None:
        async with self._at_once:
            try:
                await self._mover.move(held, restore=held.row.auto_restore)
            except WorkerError as error:  # it is busy, or has nowhere to go: looked at again
                log.debug("session.not_moved", session_id=held.row.session_id, error=error.message)
