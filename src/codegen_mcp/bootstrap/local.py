"""Coordinator and worker in one process, and nothing else to install."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.bootstrap.engine import Engine, open_engine
from codegen_mcp.bootstrap.isolation import worker_facts
from codegen_mcp.bootstrap.router import Routing, open_routing
from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.embedded import EmbeddedConfig, EmbeddedWorker
from codegen_mcp.coordinator.local_link import LocalLink
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.audit_metrics import AuditMetrics
from codegen_mcp.telemetry.metrics import WorkerMetrics
from codegen_mcp.version import __version__

STORE = "embedded"
"""The one store of checkpoints that there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalGateway:
    """A gateway with its own worker."""

    gateway: Gateway
    """What callers use; it counts quotas and keeps the audit log."""
    routing: Routing
    engine: Engine
    worker: WorkerServer
    """On a Unix socket that only this process can use."""
    metrics: WorkerMetrics


@asynccontextmanager
async def open_local_gateway(settings: Settings) -> AsyncIterator[LocalGateway]:
    """Open an engine, its server on a private socket, and the gateway over it.

    Sessions are kept in the state directory, and go on at the next start.

    Raises:
        SandboxUnavailable: No backend reaches ``require_isolation``.
        WorkerError: The state directory, the store or the directory cannot be used.
    """
    metrics = WorkerMetrics(worker_id=settings.worker_id, version=__version__)
    token = secrets.token_urlsafe(32)
    async with AsyncExitStack() as stack:
        socket = await stack.enter_async_context(_private_socket())
        engine = await stack.enter_async_context(open_engine(settings, metrics))
        metrics.watch(engine.sessions)
        facts = worker_facts(settings, engine.host, engine.choice, engine.egress)
        config = ServerConfig(
            worker_id=settings.worker_id,
            host=f"unix:{socket}",
            port=0,
            facts=facts,
            dial_token=token,
        )
        worker = await stack.enter_async_context(
            WorkerServer(
                engine.sessions,
                engine.tasks,
                config,
                metrics,
                artifacts=engine.artifacts,
                checkpoints=engine.checkpoints,
            )
        )
        routing = await stack.enter_async_context(open_routing(settings, engine.host.state.root))
        if routing.audit is not None:
            metrics.registry.register(AuditMetrics(routing.audit))
        services = worker.local
        assert services is not None
        await stack.enter_async_context(
            EmbeddedWorker(
                routing.workers,
                routing.router.fencing,
                engine.sessions.ownership,
                lambda: worker.capacity(measured=False),
                lambda: worker.draining,
                EmbeddedConfig(
                    worker_id=settings.worker_id,
                    address=config.address,
                    dial_token=token,
                    store_id=STORE,
                    tools=frozenset(spec.name for spec in engine.tasks.specs),
                    metadata=facts,
                ),
                link=lambda owner: LocalLink(owner, services),
            )
        )
        yield LocalGateway(
            gateway=routing.gateway,
            routing=routing,
            engine=engine,
            worker=worker,
            metrics=metrics,
        )


@asynccontextmanager
async def _private_socket() -> AsyncIterator[Path]:
    """A path in a directory of this user alone: short, since a socket's may have 107 bytes."""
    base = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="codegen-mcp-", dir="/tmp"))
    try:
        yield base / "worker"
    finally:
        await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)
