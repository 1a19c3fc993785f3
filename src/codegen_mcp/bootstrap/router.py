"""The gateway over a directory and the workers that join: of a coordinator, or of one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.coordinator.auth.quota_gateway import QuotaGateway
from codegen_mcp.coordinator.auth.quotas import QuotaLedger
from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.directory.base import Directory
from codegen_mcp.coordinator.directory.registry import open_directory
from codegen_mcp.coordinator.gateway import Router
from codegen_mcp.coordinator.routes import RouterConfig
from codegen_mcp.coordinator.workers import Workers, WorkersConfig
from codegen_mcp.core.clock import SystemClock
from codegen_mcp.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Everything between callers and workers, open."""

    directory: Directory
    workers: Workers
    router: Router
    gateway: Gateway
    """What callers use: the router behind quotas."""


@asynccontextmanager
async def open_routing(settings: Settings, state: Path) -> AsyncIterator[Routing]:
    """Open the directory and route over it.

    Raises:
        InvalidRequest: The address names no directory. Unavailable: Another coordinator has it.
        Corrupt, WrongState, StoreUnavailable: It cannot be used.
    """
    async with AsyncExitStack() as stack:
        directory = await stack.enter_async_context(
            open_directory(settings.directory_address(state))
        )
        workers = await stack.enter_async_context(
            Workers(
                directory,
                WorkersConfig(
                    beat_s=settings.worker_heartbeat_s, lost_after_s=settings.worker_lost_after_s
                ),
            )
        )
        router = await stack.enter_async_context(
            Router(
                directory,
                workers,
                RouterConfig(
                    wait_s=settings.route_wait_s, restores_at_once=settings.restores_at_once
                ),
                name=settings.coordinator_name,
            )
        )
        gateway = QuotaGateway(router, QuotaLedger(SystemClock()))
        yield Routing(directory=directory, workers=workers, router=router, gateway=gateway)
