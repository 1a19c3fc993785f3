"""The gateway over a directory and the workers that join: of a coordinator, or of one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.coordinator.auth.audit_gateway import AuditGateway
from codegen_mcp.coordinator.auth.desk import Desk
from codegen_mcp.coordinator.auth.quota_gateway import QuotaGateway
from codegen_mcp.coordinator.auth.quotas import QuotaLedger
from codegen_mcp.coordinator.auth.trail import Trail
from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.directory.base import Directory
from codegen_mcp.coordinator.directory.registry import open_directory
from codegen_mcp.coordinator.gateway import Router
from codegen_mcp.coordinator.routes import RouterConfig
from codegen_mcp.coordinator.workers import Workers, WorkersConfig
from codegen_mcp.core.clock import SystemClock
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.audit import AuditLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Everything between callers and workers, open."""

    directory: Directory
    workers: Workers
    router: Router
    gateway: Gateway
    """What callers use: the router behind quotas and the audit log."""
    desk: Desk
    """Where an agent's tool call reports, so that it counts and is recorded as one."""
    audit: AuditLog | None
    """None where it is off."""


@asynccontextmanager
async def open_routing(settings: Settings, state: Path) -> AsyncIterator[Routing]:
    """Open the directory and route over it.

    Raises:
        InvalidRequest: The address names no directory. Unavailable: Another coordinator has it.
        Corrupt, WrongState, StoreUnavailable: It cannot be used.
        Corrupt, Conflict, OSError: The audit log cannot be gone on with.
    """
    kept = settings.audit(state)
    async with AsyncExitStack() as stack:
        # First in, last out: it records the end of every call that anything below it makes.
        audit = None if kept is None else await stack.enter_async_context(AuditLog(kept))
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
        ledger = QuotaLedger(SystemClock())
        gateway: Gateway = QuotaGateway(router, ledger)
        trail = None if audit is None else Trail(audit)
        if trail is not None:
            gateway = await stack.enter_async_context(AuditGateway(gateway, trail))
        yield Routing(
            directory=directory,
            workers=workers,
            router=router,
            gateway=gateway,
            desk=Desk(ledger, trail),
            audit=audit,
        )
