"""Coordinators and workers of ours in one process, joined over loopback as over a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen_mcp.bootstrap.coordinator import Coordinator, open_coordinator
from codegen_mcp.coordinator.worker_view import Worker
from codegen_mcp.server.lifecycle_agent import LifecycleAgent
from codegen_mcp.server.lifecycle_config import LifecycleConfig
from codegen_mcp.settings import Settings
from codegen_mcp.testing.wire import MemoryWorker, Wire, dial, memory_worker
from codegen_mcp.testing.worker import state_directory

BEAT_S = 0.1
LOST_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A coordinator, and a client of it."""

    coordinator: Coordinator
    wire: Wire
    address: str
    state: Path

    async def linked(self, worker_id: str = "memory-worker", within_s: float = 10.0) -> Worker:
        """Wait until a worker can be called."""
        async with asyncio.timeout(within_s):
            while True:
                worker = self.coordinator.routing.workers.named(worker_id)
                if worker is not None and worker.link is not None:
                    return worker
                await asyncio.sleep(0.01)


@asynccontextmanager
async def open_hub(state: Path | None = None, **changes: Any) -> AsyncIterator[Hub]:
    """Serve a coordinator with short beats, on a directory of its own unless one is given."""
    async with AsyncExitStack() as stack:
        if state is None:
            state = await stack.enter_async_context(state_directory())
        settings = Settings(
            **{
                "coordinator_port": 0,
                "base_workspace": state,
                "worker_heartbeat_s": BEAT_S,
                "worker_lost_after_s": LOST_AFTER_S,
                "route_wait_s": 5.0,
                "audit_dir": "off",
                **changes,
            }
        )
        coordinator = await stack.enter_async_context(open_coordinator(settings))
        address = f"127.0.0.1:{coordinator.server.port}"
        wire = await stack.enter_async_context(dial(address))
        yield Hub(coordinator=coordinator, wire=wire, address=address, state=state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A worker over an engine in memory, with its agent."""

    worker: MemoryWorker
    agent: LifecycleAgent


@asynccontextmanager
async def joined_worker(
    coordinator: str,
    worker_id: str = "memory-worker",
    *,
    dialled: bool = False,
    lifecycle: dict[str, Any] | None = None,
    **changes: Any,
) -> AsyncIterator[Joined]:
    """Open a worker that joins a coordinator; it may not have joined yet.

    Args:
        coordinator: Its address.
        worker_id: Of the worker.
        dialled: It announces its address; else its TaskStream serves.
        lifecycle: Other values of ``LifecycleConfig``.
        changes: As of ``memory_worker``.
    """
    token = "a-dial-token"
    settings = {"worker_id": worker_id, "dial_token": token, "dial_token_required": False}
    async with memory_worker(**{**settings, **changes}) as worker:
        config = LifecycleConfig(
            **{
                "coordinator": coordinator,
                "worker_id": worker_id,
                "grpc_address": worker.address if dialled else "",
                "dial_token": token if dialled else "",
                "tools": [spec.name for spec in worker.engine.tasks.specs],
                "languages": ["python"],
                "beat_s": BEAT_S,
                "backoff_s": (0.02, 0.2),
                "grace_s": 5.0,
                **(lifecycle or {}),
            }
        )
        async with LifecycleAgent(config, worker.server, worker.engine.sessions.ownership) as agent:
            yield Joined(worker=worker, agent=agent)
