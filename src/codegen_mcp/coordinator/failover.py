"""Sessions that nobody live holds come back: taken over under the next epoch, then restored.

The order is what makes it right. The epoch is taken first: from then on nothing that the former
holder does is committed. What there is to restore is read after that, so that no checkpoint that
was acknowledged is missed. Only then a worker is asked.
"""

from __future__ import annotations

import asyncio

import structlog

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.directory.base import Commit, RowState, SessionRow
from codegen_mcp.coordinator.placement import Placement, Refused, Wanted
from codegen_mcp.coordinator.routes import Held, Routes
from codegen_mcp.coordinator.worker_view import Worker
from codegen_mcp.coordinator.workers import Cause, Lost
from codegen_mcp.core.checkpoint import CheckpointId, parse_checkpoint_id
from codegen_mcp.core.errors import (
    Corrupt,
    NotFound,
    NotImplementedYet,
    Unavailable,
    WorkerError,
)
from codegen_mcp.engine.owned_tasks import OwnedTasks

log = structlog.get_logger()

PAGE = 500
RETURN_S = 60.0
"""How long a session without checkpoint waits for a worker that left in peace, and kept it."""


class Failover:
    """Brings sessions back, each once for all who ask."""

    def __init__(self, routes: Routes, placement: Placement, tasks: OwnedTasks) -> None:
        self._routes = routes
        self._directory = routes.directory
        self._placement = placement
        self._tasks = tasks
        self._at_once = asyncio.Semaphore(routes.config.restores_at_once)
        self._left: dict[str, float] = {}
        """Workers that left in peace, with their sessions on disk: since when, monotonic."""

    def lock(self, session_id: str) -> asyncio.Lock:
        """Held while a session changes hands."""
        return self._routes.lock(session_id)

    async def lost(self, lost: Lost) -> None:
        """Hear of a worker that is gone: those that asked for it come back at once."""
        if lost.cause is Cause.LEFT:
            self._left[lost.owner.worker_id] = asyncio.get_running_loop().time()
        for row in lost.sessions:
            self._routes.forget(row.session_id)
        log.warning(
            "worker.lost",
            worker=lost.owner.worker_id,
            incarnation=lost.owner.incarnation,
            cause=str(lost.cause),
            sessions=len(lost.sessions),
        )
        async with asyncio.TaskGroup() as group:
            for row in lost.sessions:
                if row.auto_restore:
                    group.create_task(self._restore_quietly(row))

    async def _restore_quietly(self, row: SessionRow) -> None:
        async with self._at_once:
            try:
                await self.revive(row)
            except WorkerError as error:  # the next call that names it tries again, and is told
                log.warning("session.not_restored", session_id=row.session_id, error=error.message)

    async def revive(self, row: SessionRow, checkpoint_id: str = "") -> Held:
        """Bring it back, in a task that a caller who leaves does not end.

        Args:
            row: As it was last seen.
            checkpoint_id: Go back to this one; empty: to the newest.

        Raises:
            NotFound: It has no checkpoint (reason SESSION_LOST, once), or not that one.
            Corrupt: It is damaged. Full, Unavailable: Nobody can take it now.
        """
        work = self._tasks.spawn(self._revive(row, checkpoint_id), "session-revive")
        return await asyncio.shield(work)

    async def _revive(self, row: SessionRow, checkpoint_id: str) -> Held:
        session_id = row.session_id
        async with self.lock(session_id):
            now = await self._directory.get(session_id)
            if now is None or now.state is RowState.ENDED:
                raise refusals.no_session(session_id)
            link = self._routes.linked(now)
            if link is not None and now.owner is not None:
                return Held(row=now, owner=now.owner, link=link)  # somebody was faster
            if await self._may_return(now):
                raise refusals.worker_away(session_id, 0)
            return await self._take_over(now, checkpoint_id)

    async def _take_over(self, row: SessionRow, checkpoint_id: str) -> Held:
        """Place it; its lock is held."""
        if not self._placement.candidates(self._wanted(row)) and not row.store_id:
            # Nobody else can read what that worker saved.
            if row.checkpoint_id:
                raise refusals.worker_away(row.session_id, 0)
            await self._directory.end(row.session_id, row.epoch)
            raise refusals.session_lost(row.session_id)
        last_epoch = row.epoch
        expected = row.epoch

        async def make(worker: Worker) -> Held:
            nonlocal expected
            link = worker.link
            if link is None:
                raise Refused(Unavailable(f"worker {worker.worker_id!r} has no link"))
            taken = await self._directory.acquire(row.session_id, worker.owner, expected)
            if taken is None:
                raise refusals.fenced(row.session_id)
            expected = taken.epoch
            try:
                return await self._restore(taken, link, worker, last_epoch, checkpoint_id)
            except BaseException as error:
                self._routes.forget(row.session_id)
                await self._directory.release(row.session_id, worker.owner, taken.epoch)
                if isinstance(error, WorkerError) and not isinstance(error, NotFound | Corrupt):
                    raise Refused(error) from error
                raise

        return await self._placement.place(self._wanted(row), make)

    def _wanted(self, row: SessionRow) -> Wanted:
        """Who can read its checkpoints.

        Raises:
            Unavailable: Only the worker that is away.
        """
        if row.store_id or row.owner is None:
            return Wanted(store_id=row.store_id)
        return Wanted(worker_id=row.owner.worker_id)

    async def _may_return(self, row: SessionRow) -> bool:
        """Whether all there is of it lies with a worker that left, and is given time to restart."""
        worker_id = row.owner.worker_id if row.owner is not None else ""
        since = self._left.get(worker_id)
        if since is None or row.checkpoint_id:
            return False
        passed = asyncio.get_running_loop().time() - since
        if self._routes.workers.named(worker_id) is not None or passed > RETURN_S:
            self._left.pop(worker_id, None)
            return False
        for worker in self._placement.candidates(self._wanted(row)):
            if worker.link is not None and await stored(worker.link, row.session_id):
                return False
        return True

    async def _restore(
        self,
        taken: SessionRow,
        link: WorkerLink,
        worker: Worker,
        last_epoch: int,
        checkpoint_id: str,
    ) -> Held:
        session_id = taken.session_id
        source = checkpoint_id or await newest(link, taken, last_epoch)
        if not source:
            await self._directory.end(session_id, taken.epoch)
            raise refusals.session_lost(session_id)
        answer = await link.unary(
            "SessionManagement/RestoreSession",
            pb.RestoreRequest(checkpoint_id=source, session_id=session_id, epoch=taken.epoch),
            epoch=taken.epoch,
        )
        assert isinstance(answer, pb.RestoreResponse)
        (kept,) = await self._directory.commit(
            worker.owner,
            [Commit(session_id=session_id, epoch=taken.epoch, checkpoint_id=source)],
        )
        if not kept:
            raise Unavailable(f"worker {worker.worker_id!r} was lost during a restore")
        self._routes.remember(taken)
        log.info(
            "session.restored_elsewhere",
            session_id=session_id,
            worker=worker.worker_id,
            epoch=taken.epoch,
            checkpoint=source,
        )
        told = words(session_id, source, answer.lost)
        return Held(row=taken, owner=worker.owner, link=link, restored=told)


async def newest(link: WorkerLink, taken: SessionRow, last_epoch: int) -> str:
    """The checkpoint that has all that was acknowledged of a session; empty when there is none.

    That is the newest in the store that the last owner wrote, or an owner after the one who wrote
    what the directory points to. One that an earlier owner wrote beyond that pointer was never
    acknowledged: it was fenced by then.
    """
    pointer = parse_checkpoint_id(taken.checkpoint_id) if taken.checkpoint_id else None
    try:
        found = await stored(link, taken.session_id)
    except NotImplementedYet:
        return taken.checkpoint_id
    usable = [one for one in found if _counts(one, pointer, last_epoch)]
    return str(max(usable, key=_age)) if usable else ""


def _counts(one: CheckpointId, pointer: CheckpointId | None, last_epoch: int) -> bool:
    if one.epoch > last_epoch:
        return False
    if pointer is None or one.epoch == last_epoch or one.epoch > pointer.epoch:
        return True
    return _age(one) <= _age(pointer)


def _age(one: CheckpointId) -> tuple[int, int]:
    return one.epoch, one.number


async def stored(link: WorkerLink, session_id: str) -> list[CheckpointId]:
    """Every checkpoint of a session in the store of a worker."""
    found: list[CheckpointId] = []
    token = ""
    while True:
        page = await link.unary(
            "SessionManagement/ListCheckpoints",
            pb.ListCheckpointsRequest(session_id=session_id, page_size=PAGE, page_token=token),
        )
        assert isinstance(page, pb.ListCheckpointsResponse)
        found += [parse_checkpoint_id(one.checkpoint_id) for one in page.checkpoints]
        token = page.next_page_token
        if not token:
            return found


def words(session_id: str, source: str, lost: str) -> str:
    """Say what was restored, and what was lost."""
    told = f"the worker of session {session_id} was lost, and it is restored from {source}"
    return f"{told}; lost: {lost}" if lost else told
