"""A worker in the same process as its coordinator: it joins without a network, and beats here."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import structlog

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as lifecycle_pb
from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.dialled_link import DialledLink
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.fencing import Fencing
from codegen_mcp.coordinator.worker_view import Load, Registration
from codegen_mcp.coordinator.workers import Workers
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.engine.base import Ownership

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedConfig:
    """The worker, as it would register."""

    worker_id: str
    address: str
    """Of its gRPC server: ``unix:/path``."""
    dial_token: str = field(repr=False)
    store_id: str
    """Names the store of its checkpoints."""
    tools: frozenset[str]
    metadata: Mapping[str, str]


class EmbeddedWorker:
    """An async context manager: open means joined. The worker's server must be open before."""

    def __init__(
        self,
        workers: Workers,
        fencing: Fencing,
        ownership: Ownership,
        capacity: Callable[[], lifecycle_pb.SessionCapacity],
        draining: Callable[[], bool],
        config: EmbeddedConfig,
        *,
        link: Callable[[Owner], WorkerLink] | None = None,
    ) -> None:
        """Wire it.

        Args:
            workers: That it joins.
            fencing: Compares what it holds with the directory.
            ownership: Of its engine.
            capacity: Its room and sessions, as it would send them; what they use is not asked for.
            draining: Whether it ends.
            config: See there.
            link: Makes the way to it; None dials its address.
        """
        self._link = link or self._dial
        self._workers = workers
        self._fencing = fencing
        self._ownership = ownership
        self._capacity = capacity
        self._draining = draining
        self._config = config
        self._start_id = secrets.token_hex(16)
        self._owner: Owner | None = None
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._join()
        self._beating = asyncio.create_task(self._beat_on(), name="embedded-worker-beat")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave without a word: its sessions are its next start's."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)

    async def _join(self) -> None:
        capacity = self._capacity()
        worker = await self._workers.register(
            Registration(
                worker_id=self._config.worker_id,
                start_id=self._start_id,
                max_sessions=capacity.total_sessions,
                tools=self._config.tools,
                store_id=self._config.store_id,
                version=capacity.version,
                grpc_address=self._config.address,
                dial_token=self._config.dial_token,
                metadata=self._config.metadata,
            )
        )
        adoption = await self._fencing.adopt(worker.owner, self._ownership.held())
        for session_id, epoch in adoption.granted.items():
            await self._ownership.grant(session_id, epoch)
        await self._fence(adoption.fenced)
        await self._workers.attach(worker.owner, self._link(worker.owner))
        self._owner = worker.owner

    def _dial(self, owner: Owner) -> WorkerLink:
        return DialledLink(owner, self._config.address, token=self._config.dial_token)

    async def _beat_on(self) -> None:
        while True:
            try:
                await self._beat()
            except WorkerError as error:
                log.warning("embedded.beat_failed", error=error.message)
            await asyncio.sleep(self._workers.config.beat_s)

    async def _beat(self) -> None:
        assert self._owner is not None
        capacity = self._capacity()
        load = Load(
            total=capacity.total_sessions,
            active=capacity.total_sessions - capacity.available_sessions,
            draining=self._draining(),
        )
        if not await self._workers.beat(self._owner, load):
            await self._join()
            return
        await self._fence(await self._fencing.report(self._owner, capacity.sessions))

    async def _fence(self, session_ids: Sequence[str]) -> None:
        held = self._ownership.held()
        for session_id in session_ids:
            if session_id in held:
                await self._ownership.fence(session_id, held[session_id])
