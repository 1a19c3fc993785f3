"""Takes a session off a worker that shuts down, with everything it has."""

from __future__ import annotations

import structlog

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.directory.base import Commit
from codegen_mcp.coordinator.failover import Failover
from codegen_mcp.coordinator.placement import Placement, Wanted
from codegen_mcp.coordinator.routes import Held, Routes
from codegen_mcp.core.errors import Draining, WorkerError
from codegen_mcp.engine.owned_tasks import OwnedTasks

log = structlog.get_logger()

RETRY_S = 1.0


class Mover:
    """Saves, gives up, and lets the next use restore it elsewhere: nothing is lost."""

    def __init__(
        self, routes: Routes, failover: Failover, placement: Placement, tasks: OwnedTasks
    ) -> None:
        self._routes = routes
        self._failover = failover
        self._placement = placement
        self._tasks = tasks

    async def move(self, held: Held, *, restore: bool = False) -> None:
        """Return when it may be taken over; ``restore``: and begin that at once.

        Raises:
            Draining: It has tasks under way, or nobody else can restore it.
            WorkerError: It could not be saved; it stays where it is.
        """
        moved = await self._tasks.spawn(self._move(held), "session-move")
        row = await self._routes.directory.get(held.row.session_id) if moved and restore else None
        if row is not None and row.owner is None:
            self._tasks.spawn(self._failover.revive(row), "session-restore")

    async def _move(self, held: Held) -> bool:
        row, session_id = held.row, held.row.session_id
        async with self._failover.lock(session_id):
            now = await self._routes.directory.get(session_id)
            if now is None or now.epoch != row.epoch or now.owner != held.owner:
                self._routes.forget(session_id)
                return False  # it has moved already
            elsewhere = Wanted(store_id=row.store_id, avoid=frozenset({held.owner}))
            if not self._placement.candidates(elsewhere):
                raise draining("no other worker can restore it")
            status = await held.link.unary(
                "SessionManagement/GetSessionStatus",
                pb.SessionStatusRequest(session_id=session_id),
                epoch=row.epoch,
            )
            assert isinstance(status, pb.SessionStatusResponse)
            if status.info.active_tasks:
                raise draining("its tasks are under way, and are given time to end")
            await self._save_and_release(held)
            self._tasks.spawn(self._end(held), "session-end")
        log.info("session.moving", session_id=session_id, worker=held.owner.worker_id)
        return True

    async def put_aside(self, held: Held) -> bool:
        """Save an idle session and free its place; its next use restores it. False: it is busy.

        Raises:
            WorkerError: It could not be saved; it stays where it is.
        """
        return await self._tasks.spawn(self._put_aside(held), "session-put-aside")

    async def _put_aside(self, held: Held) -> bool:
        session_id = held.row.session_id
        lock = self._failover.lock(session_id)
        if lock.locked():
            return False
        async with lock:
            status = await held.link.unary(
                "SessionManagement/GetSessionStatus",
                pb.SessionStatusRequest(session_id=session_id),
                epoch=held.row.epoch,
            )
            assert isinstance(status, pb.SessionStatusResponse)
            if status.info.active_tasks:
                return False
            await self._save_and_release(held)
            await self._end(held)
        log.info("session.put_aside", session_id=session_id, worker=held.owner.worker_id)
        return True

    async def _save_and_release(self, held: Held) -> None:
        """Nothing that it did after the save counts; its lock is held."""
        session_id, epoch = held.row.session_id, held.row.epoch
        saved = await held.link.unary(
            "SessionManagement/CheckpointSession",
            pb.CheckpointRequest(session_id=session_id, incremental=True),
            epoch=epoch,
        )
        assert isinstance(saved, pb.CheckpointResponse)
        (kept,) = await self._routes.directory.commit(
            held.owner,
            [Commit(session_id=session_id, epoch=epoch, checkpoint_id=saved.checkpoint_id)],
        )
        self._routes.forget(session_id)
        if not kept:
            raise refusals.fenced(session_id)
        await self._routes.directory.release(session_id, held.owner, epoch)

    async def _end(self, held: Held) -> None:
        """Free the place at once; if that fails, the worker is told when it next says it has it."""
        request = pb.DestroySessionRequest(session_id=held.row.session_id, force=True)
        try:
            await held.link.unary("SessionManagement/DestroySession", request, epoch=held.row.epoch)
        except WorkerError as error:
            log.info("session.not_ended", session_id=held.row.session_id, error=error.message)


def draining(why: str) -> Draining:
    """Return the answer where a session has to wait for its worker's end."""
    return Draining(
        f"the worker of the session is shutting down, and the session cannot be moved yet: {why}; "
        "try again shortly",
        retry_after_s=RETRY_S,
    )
