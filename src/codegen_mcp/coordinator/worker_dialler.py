"""Reaches workers that announced an address, before they are called there."""

from __future__ import annotations

import asyncio

import structlog
from grpc import ChannelCredentials

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.coordinator.dialled_link import DialledLink
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.remote_errors import LinkBroken
from codegen_mcp.coordinator.worker_view import Worker
from codegen_mcp.coordinator.workers import Workers
from codegen_mcp.core.errors import Unavailable, WorkerError
from codegen_mcp.engine.owned_tasks import OwnedTasks

log = structlog.get_logger()


class WorkerDialler:
    """Attaches a dialled link to a start once it has answered there."""

    def __init__(
        self, workers: Workers, *, credentials: ChannelCredentials | None, dial_s: float
    ) -> None:
        """Wire it up.

        Args:
            workers: Whose links these become.
            credentials: Of TLS; None is plain text.
            dial_s: How long the first answer may take.
        """
        self._workers = workers
        self._credentials = credentials
        self._dial_s = dial_s
        self._tasks = OwnedTasks()
        self._trying: dict[Owner, asyncio.Task[bool]] = {}

    async def aclose(self) -> None:
        """End what is being tried."""
        await self._tasks.aclose()

    def begin(self, worker: Worker) -> None:
        """Try in the background, where it has an address, no link yet, and is not being tried."""
        if worker.registration.grpc_address and worker.link is None:
            self._attempt(worker)

    async def reach(self, worker: Worker) -> bool:
        """Whether it is reached by its address; tries once where that is not known."""
        if not worker.registration.grpc_address:
            return False
        if isinstance(worker.link, DialledLink):
            return True
        return await asyncio.shield(self._attempt(worker))

    def _attempt(self, worker: Worker) -> asyncio.Task[bool]:
        task = self._trying.get(worker.owner)
        if task is None:
            task = self._trying[worker.owner] = self._tasks.spawn(self._dial(worker), "worker-dial")
            task.add_done_callback(lambda _: self._trying.pop(worker.owner, None))
        return task

    async def _dial(self, worker: Worker) -> bool:
        facts = worker.registration
        link = DialledLink(
            worker.owner,
            facts.grpc_address,
            token=facts.dial_token,
            credentials=self._credentials,
            connect_s=self._dial_s,
        )
        try:
            async with asyncio.timeout(2 * self._dial_s):
                await link.unary("SessionManagement/GetCapacity", pb.CapacityRequest())
        except (LinkBroken, TimeoutError) as error:
            await link.close()
            log.warning(
                "worker.not_dialled",
                worker=worker.worker_id,
                address=facts.grpc_address,
                error=str(error)[:200],
            )
            return False
        except WorkerError as error:
            # It is there, and answers: an older worker has no such method.
            log.debug("worker.capacity_not_told", worker=worker.worker_id, error=str(error)[:200])
        except BaseException:
            await link.close()
            raise
        try:
            await self._workers.attach(worker.owner, link)
        except Unavailable:
            return False
        log.info("worker.dialled", worker=worker.worker_id, address=facts.grpc_address)
        return True
