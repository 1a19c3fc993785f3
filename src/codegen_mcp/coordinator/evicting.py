"""When all workers are full: sessions that calls made by themselves give way, saved."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import structlog

from codegen_mcp.coordinator.directory.base import RowState, SessionRow
from codegen_mcp.coordinator.moving import Mover
from codegen_mcp.coordinator.placement import Placement, Wanted
from codegen_mcp.coordinator.routes import Held, Routes
from codegen_mcp.coordinator.worker_view import Worker
from codegen_mcp.core.errors import Full, WorkerError

log = structlog.get_logger()

T = TypeVar("T")

PAGE = 500
LOOKED_AT = 64
"""Sessions that may turn out to be busy before a call is refused."""
QUOTA = "QUOTA_EXCEEDED"


class Evictor:
    """Puts one aside, the one unused for longest first, when a session finds no room."""

    def __init__(self, routes: Routes, placement: Placement, mover: Mover) -> None:
        self._routes = routes
        self._placement = placement
        self._mover = mover

    async def load(self) -> None:
        """Read from the directory which there are, at the start of a coordinator."""
        after = ""
        while True:
            rows = await self._routes.directory.sessions(after=after, limit=PAGE)
            for row in rows:
                if row.adhoc:
                    self._routes.remember(row)
            if len(rows) < PAGE:
                return
            after = rows[-1].session_id

    async def place(self, wanted: Wanted, make: Callable[[Worker], Awaitable[T]]) -> T:
        """``Placement.place``; once more on the worker where one could be put aside.

        Raises:
            Full: None could be. Else as of ``Placement.place``.
        """
        try:
            return await self._placement.place(wanted, make)
        except Full as full:
            if full.reason == QUOTA:
                raise
            worker_id = await self._make_room(wanted)
            if not worker_id:
                raise
            return await self._placement.place(replace(wanted, worker_id=worker_id), make)

    async def _make_room(self, wanted: Wanted) -> str:
        """The worker on which one was put aside; empty when none was."""
        here = {worker.owner for worker in self._placement.candidates(wanted)}
        for session_id in list(islice(self._routes.adhoc, LOOKED_AT)):
            row = await self._routes.directory.get(session_id)
            if row is None or row.state is RowState.ENDED or row.owner is None:
                self._routes.adhoc.pop(session_id, None)  # it has no place
                continue
            held = self._held(row)
            if held is not None and held.owner in here and await self._put_aside(held):
                return held.owner.worker_id
        return ""

    async def _put_aside(self, held: Held) -> bool:
        try:
            done = await self._mover.put_aside(held)
        except WorkerError as error:
            log.info("session.not_put_aside", session_id=held.row.session_id, error=error.message)
            return False
        if done:
            self._routes.adhoc.pop(held.row.session_id, None)
        return done

    def _held(self, row: SessionRow) -> Held | None:
        link = self._routes.linked(row)
        if link is None or row.owner is None:
            return None
        return Held(row=row, owner=row.owner, link=link)
