"""New sessions: reserved in the directory, made on a worker, confirmed; nothing is left half-way.

Each attempt has an id of its own, because an id is bound to the owner it was reserved for. What an
attempt may have left on a worker is ended there in the background; if that does not arrive, the
worker is told when it next says that it holds the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.directory.base import Owner, RowState, SessionRow
from codegen_mcp.coordinator.evicting import Evictor
from codegen_mcp.coordinator.placement import Refused, Wanted
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.routes import Routes
from codegen_mcp.coordinator.worker_view import Worker
from codegen_mcp.core.errors import Full, Unavailable, WorkerError
from codegen_mcp.core.ids import new_session_id
from codegen_mcp.engine.owned_tasks import OwnedTasks

log = structlog.get_logger()

T = TypeVar("T")

GIVE_BACK_S = 10.0
"""How long a worker may take to end what an attempt left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A session that a worker has made, or says it has."""

    row: SessionRow
    link: WorkerLink


class Maker:
    """Makes sessions for principals."""

    def __init__(self, routes: Routes, evictor: Evictor, tasks: OwnedTasks) -> None:
        self._routes = routes
        self._directory = routes.directory
        self._evictor = evictor
        self._tasks = tasks

    async def place(
        self,
        principal: Principal,
        wanted: Wanted,
        ask: Callable[[SessionRow, WorkerLink], Awaitable[tuple[T, str]]],
        *,
        auto_restore: bool = False,
        adhoc: bool = False,
    ) -> tuple[T, SessionRow]:
        """Find a worker that makes a session.

        Args:
            principal: Whose it is.
            wanted: What the worker must have.
            ask: Has the worker make it; returns the answer and the id that it really has.
            auto_restore: Kept in the row.
            adhoc: Kept in the row.

        Raises:
            Full: No worker has room, or the principal's quota. WorkerError: of the worker.
        """

        async def make(worker: Worker) -> tuple[T, SessionRow]:
            link = worker.link
            if link is None:
                raise Refused(Unavailable(f"worker {worker.worker_id!r} has no link"))
            row = new_row(principal, worker, auto_restore=auto_restore, adhoc=adhoc)
            async with self.reserved(principal, [row], link) as rows:
                try:
                    answer, session_id = await ask(row, link)
                    (settled,) = await self.settle(principal, rows, [session_id])
                except WorkerError as error:
                    if may_go_elsewhere(error):
                        raise Refused(error) from error
                    raise
                return answer, settled

        return await self._evictor.place(wanted, make)

    @asynccontextmanager
    async def reserved(
        self, principal: Principal, rows: Sequence[SessionRow], link: WorkerLink
    ) -> AsyncIterator[Sequence[SessionRow]]:
        """Hold rows for sessions that a worker is to make; given back when the block fails.

        Raises:
            Full: The principal's quota. Refused: The worker died.
        """
        done: list[SessionRow] = []
        names = {row.session_id for row in rows}
        self._routes.making |= names
        try:
            for row in rows:
                bound = principal.quotas.sessions
                if not await self._directory.reserve(row, max_sessions=bound):
                    raise Refused(Unavailable("the worker was lost", reason="WORKER_LOST"))
                done.append(row)
            yield rows
        except BaseException:
            self._tasks.spawn(self._give_back(done, link), "session-give-back")
            raise
        finally:
            self._routes.making -= names

    async def settle(
        self, principal: Principal, rows: Sequence[SessionRow], session_ids: Sequence[str]
    ) -> Sequence[SessionRow]:
        """Confirm what a worker made; one that chose ids of its own keeps them.

        Raises:
            Unavailable: The worker was lost meanwhile; so are they.
        """
        settled: list[SessionRow] = []
        for row, session_id in zip(rows, session_ids, strict=True):
            owner = row.owner
            assert owner is not None
            if session_id != row.session_id:
                # A worker that knows nothing of chosen ids.
                row = await self._renamed(principal, row, session_id)
            if not await self._directory.confirm(row.session_id, owner, row.epoch):
                raise Unavailable(
                    "the worker was lost while it made the session; try again",
                    reason="WORKER_LOST",
                    retry_after_s=refusals.RETRY_S,
                )
            row = replace(row, state=RowState.LIVE)
            self._routes.remember(row)
            settled.append(row)
        return settled

    async def _renamed(self, principal: Principal, row: SessionRow, session_id: str) -> SessionRow:
        renamed = replace(row, session_id=session_id)
        await self._directory.end(row.session_id, row.epoch)
        bound = principal.quotas.sessions
        await self._directory.reserve(renamed, max_sessions=bound)
        return renamed

    async def _give_back(self, rows: Sequence[SessionRow], link: WorkerLink) -> None:
        for row in rows:
            await self._directory.end(row.session_id, row.epoch)
            self._routes.forget(row.session_id)
        for row in rows:
            request = pb.DestroySessionRequest(session_id=row.session_id, force=True)
            try:
                async with asyncio.timeout(GIVE_BACK_S):
                    await link.unary("SessionManagement/DestroySession", request, epoch=row.epoch)
            except (WorkerError, TimeoutError) as error:
                log.debug("session.not_given_back", session_id=row.session_id, error=str(error))


def new_row(
    principal: Principal, worker: Worker, *, auto_restore: bool = False, adhoc: bool = False
) -> SessionRow:
    """Return the row of a session to be, with a fresh id."""
    return row_for(
        principal,
        worker.owner,
        worker.registration.store_id,
        auto_restore=auto_restore,
        adhoc=adhoc,
    )


def row_for(
    principal: Principal,
    owner: Owner,
    store_id: str,
    *,
    auto_restore: bool = False,
    adhoc: bool = False,
) -> SessionRow:
    """Return the row of a session to be on a worker, with a fresh id."""
    return SessionRow(
        session_id=new_session_id(),
        principal=principal.name,
        owner=owner,
        epoch=1,
        checkpoint_id="",
        sequence=0,
        state=RowState.CREATING,
        auto_restore=auto_restore,
        adhoc=adhoc,
        store_id=store_id,
    )


def may_go_elsewhere(error: WorkerError) -> bool:
    """Whether another worker may do what this one refused, or did not live to do."""
    return isinstance(error, Full | Unavailable)
