"""What nobody asks for any more: rows that would else stay, and count, for ever.

Times are this process's own: a coordinator that starts anew begins to count again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.coordinator.directory.base import RowState, SessionRow
from codegen_mcp.coordinator.failover import Failover, stored
from codegen_mcp.coordinator.routes import Routes
from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import WorkerError

log = structlog.get_logger()

EVERY_S = 30.0
LOST_KEPT_S = 3600.0
"""A session that was lost without a checkpoint waits so long for its worker, with its files."""
ASIDE_KEPT_S = 24 * 3600.0
"""A session that a single call made for itself, and nobody used since it gave its place up."""
PAGE = 500


class Sweeper:
    """Ends what is over, and brings back what should have been."""

    def __init__(self, routes: Routes, failover: Failover, clock: Clock) -> None:
        self._routes = routes
        self._failover = failover
        self._clock = clock
        self._since: dict[str, float] = {}
        """Sessions that are waited for: since when, monotonic."""

    async def run(self) -> None:
        """Sweep from time to time, for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.sweep()
            except Exception as error:
                log.warning("router.not_swept", error=str(error))

    async def sweep(self) -> None:
        """Look at every row once."""
        before, self._since = self._since, {}
        async for row in self._rows():
            kept_s = _kept_s(row)
            if row.state is RowState.LOST and row.auto_restore:
                await self._bring_back(row)
            elif kept_s is not None:
                now = self._clock.monotonic()
                since = before.get(row.session_id, now)
                if now - since < kept_s:
                    self._since[row.session_id] = since
                else:
                    await self._end(row)
        await self._routes.directory.forget(self._routes.config.keep_ended)

    async def _rows(self) -> AsyncIterator[SessionRow]:
        after = ""
        while True:
            rows = await self._routes.directory.sessions(after=after, limit=PAGE)
            for row in rows:
                yield row
            if len(rows) < PAGE:
                return
            after = rows[-1].session_id

    async def _bring_back(self, row: SessionRow) -> None:
        """Once more: when it was lost, nobody could take it."""
        if not row.checkpoint_id:
            return  # it may be its worker's alone; a call that names it is told
        try:
            await self._failover.revive(row)
        except WorkerError as error:
            log.debug("session.not_restored", session_id=row.session_id, error=error.message)

    async def _end(self, row: SessionRow) -> None:
        async with self._failover.lock(row.session_id):
            now = await self._routes.directory.get(row.session_id)
            if now != row:
                return
            if row.adhoc:
                await self._delete_checkpoints(row)
            self._routes.forget(row.session_id)
            await self._routes.directory.end(row.session_id, row.epoch)
        log.info("session.swept", session_id=row.session_id, state=row.state)

    async def _delete_checkpoints(self, row: SessionRow) -> None:
        """Nobody ever named them; where that fails they stay, and cost their bytes."""
        for worker in self._routes.workers.all():
            if worker.link is None or worker.registration.store_id != row.store_id:
                continue
            try:
                for one in await stored(worker.link, row.session_id):
                    request = pb.DeleteCheckpointRequest(checkpoint_id=str(one))
                    await worker.link.unary("SessionManagement/DeleteCheckpoint", request)
            except WorkerError as error:
                log.info("session.checkpoints_stay", session_id=row.session_id, error=error.message)
            return


def _kept_s(row: SessionRow) -> float | None:
    """How long a row stays as it is; None: for ever."""
    if row.state is RowState.LOST and not row.checkpoint_id:
        return LOST_KEPT_S
    if row.state is RowState.LIVE and row.owner is None and row.adhoc:
        return ASIDE_KEPT_S
    return None
