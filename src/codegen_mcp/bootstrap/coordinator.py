"""A serving coordinator, and the coordinator as a process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.routing import Mount

from codegen_mcp.bootstrap.http import own_url
from codegen_mcp.bootstrap.process import CONNECTIONS, FILES, open_many_files, settle_memory
from codegen_mcp.bootstrap.router import Routing, open_routing
from codegen_mcp.coordinator.app import CoordinatorConfig, CoordinatorServer
from codegen_mcp.coordinator.auth.authenticator import open_authenticator
from codegen_mcp.coordinator.auth.base import Authenticator
from codegen_mcp.coordinator.auth.grpc_auth import AuthInterceptor
from codegen_mcp.coordinator.auth.link_guard import refuse_auth_links
from codegen_mcp.coordinator.auth.reach import check_reach, reach_lines
from codegen_mcp.coordinator.auth.tls import ServerIdentity, channel_credentials
from codegen_mcp.coordinator.auth.worker_auth import open_worker_gate
from codegen_mcp.coordinator.lifecycle_service import LifecycleService, LifecycleServiceConfig
from codegen_mcp.coordinator.workers import Workers
from codegen_mcp.core.clock import SystemClock
from codegen_mcp.http.app import make_app
from codegen_mcp.http.server import HttpServer
from codegen_mcp.server.signals import ShutdownSignals
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.audit_metrics import AuditMetrics
from codegen_mcp.telemetry.coordinator_metrics import CoordinatorMetrics, FleetNumbers
from codegen_mcp.telemetry.logs import configure_logging
from codegen_mcp.telemetry.metrics import CONTENT_TYPE
from codegen_mcp.version import __version__

THREADS = 8
"""For work that blocks: reading files of tokens and certificates, and the directory."""
QUIET_LOOK_S = 0.02
STOP_S = 0.5
"""For answers that are on their way when everything has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """A serving coordinator."""

    routing: Routing
    server: CoordinatorServer
    metrics: CoordinatorMetrics
    lifecycle: LifecycleService
    http: HttpServer | None
    """Metrics and health; None where METRICS_PORT is off."""

    async def wind_down(self, grace_s: float) -> None:
        """Let calls end while their workers still beat and answer; then let go of the workers."""
        await self.server.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while True:
                    if self.server.in_flight <= self.lifecycle.streams:
                        break
                    await asyncio.sleep(QUIET_LOOK_S)
        await self.lifecycle.end_streams()
        await self.server.stop(STOP_S)


@asynccontextmanager
async def open_coordinator(settings: Settings) -> AsyncIterator[Coordinator]:
    """Open a serving coordinator; leaving the block ends its calls at once.

    Raises:
        InvalidRequest: It would listen beyond this machine and ask nobody who they are; or a
            setting names a file that is missing or damaged.
        WorkerError: The directory cannot be used. OSError: A port is taken.
    """
    check_reach(settings.host, asks=settings.auth.asks, insecure_no_auth=settings.insecure_no_auth)
    refuse_auth_links(settings.auth_links)
    identity = None if settings.tls is None else ServerIdentity(settings.tls)
    client_tls = settings.client_tls
    async with AsyncExitStack() as stack:
        authenticator = await stack.enter_async_context(open_authenticator(settings.auth))
        gate = await open_worker_gate(settings.auth, SystemClock())
        routing = await stack.enter_async_context(open_routing(settings, settings.base_workspace))
        metrics = CoordinatorMetrics(
            lambda: fleet_numbers(routing.workers),
            name=settings.coordinator_name,
            version=__version__,
        )
        if routing.audit is not None:
            metrics.registry.register(AuditMetrics(routing.audit))
        lifecycle = await stack.enter_async_context(
            LifecycleService(
                routing.workers,
                routing.router.fencing,
                gate,
                LifecycleServiceConfig(
                    credentials=None if client_tls is None else channel_credentials(client_tls)
                ),
            )
        )
        server = CoordinatorServer(
            routing.gateway,
            CoordinatorConfig(host=settings.host, port=settings.coordinator_port),
            metrics,
            lifecycle=lifecycle.add_to,
            gates=[AuthInterceptor(authenticator)],
            credentials=None if identity is None else identity.grpc(),
        )
        http: HttpServer | None = None
        if settings.metrics_port:
            app = make_app(
                ready=lambda: server.serving, metrics=metrics.render, metrics_type=CONTENT_TYPE
            )
            http = await stack.enter_async_context(
                HttpServer(
                    app,
                    host=settings.host,
                    port=settings.metrics_port,
                    tls=None if identity is None else identity.http(),
                )
            )
        if isinstance(settings.http_port, int) and settings.http_port:
            await stack.enter_async_context(
                _agents_face(settings, routing, server, metrics, authenticator, identity)
            )
        await stack.enter_async_context(server)
        yield Coordinator(
            routing=routing, server=server, metrics=metrics, lifecycle=lifecycle, http=http
        )


@asynccontextmanager
async def _agents_face(
    settings: Settings,
    routing: Routing,
    server: CoordinatorServer,
    metrics: CoordinatorMetrics,
    authenticator: Authenticator,
    identity: ServerIdentity | None,
) -> AsyncIterator[HttpServer]:
    """MCP for the whole fleet at HTTP_PORT, with metrics and health beside it."""
    # The protocol's library takes most of a second to import: only who serves agents needs it.
    from codegen_mcp.coordinator.mcp.http import open_mcp_app
    from codegen_mcp.coordinator.mcp.server import Face

    assert isinstance(settings.http_port, int)
    files = open_many_files(FILES)
    url = settings.public_url or own_url(
        settings.host, settings.http_port, secure=identity is not None
    )
    async with open_mcp_app(
        routing.gateway,
        Face(),
        settings.mcp,
        authenticator=authenticator,
        auth=settings.auth,
        host=settings.host,
        url=url,
        public_url=settings.public_url,
        desk=routing.desk,
    ) as face:
        app = make_app(
            ready=lambda: server.serving,
            metrics=metrics.render,
            metrics_type=CONTENT_TYPE,
            routes=[Mount("/", face)],
        )
        async with HttpServer(
            app,
            host=settings.host,
            port=settings.http_port,
            setting="HTTP_PORT",
            tls=None if identity is None else identity.http(),
            connections=min(CONNECTIONS, files // 4),
        ) as http:
            yield http


def fleet_numbers(workers: Workers) -> FleetNumbers:
    """Count who is here."""
    here = workers.all()
    linked = [worker for worker in here if worker.link is not None]
    return FleetNumbers(
        linked=len(linked),
        unlinked=len(here) - len(linked),
        draining=sum(worker.draining for worker in linked),
        places=sum(worker.total for worker in linked),
        occupied=sum(worker.occupied for worker in linked),
    )


async def serve_coordinator(settings: Settings, announce: Callable[[str], object]) -> int:
    """Serve until told to stop; returns the exit code.

    The first signal drains: readiness fails, new work is refused, and calls under way have
    ``drain_grace_s``. The second ends at once. Tasks go on without the coordinator.
    """
    configure_logging(settings.log_level)
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="coordinator")
    asyncio.get_running_loop().set_default_executor(threads)
    async with ShutdownSignals() as signals, open_coordinator(settings) as coordinator:
        for line in reach_lines(
            settings.host, asks=settings.auth.asks, tls=settings.tls is not None
        ):
            announce(line)
        port = coordinator.server.port
        announce(f"coordinator {settings.coordinator_name} listening on {settings.host}:{port}")
        if isinstance(settings.http_port, int) and settings.http_port:
            announce(f"MCP at port {settings.http_port}, /mcp")
        announce("let workers join it:")
        announce(f"  COORDINATOR_ADDR={settings.host}:{port} codegen-mcp worker --port 0")
        settle_memory()
        await signals.drain.wait()
        announce("draining: no new work; a second signal ends at once")
        await coordinator.server.drain()
        stopping = asyncio.ensure_future(coordinator.wind_down(settings.drain_grace_s))
        exiting = asyncio.ensure_future(signals.exit.wait())
        try:
            await asyncio.wait([stopping, exiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in (stopping, exiting):
                future.cancel()
            await asyncio.gather(stopping, exiting, return_exceptions=True)
    return 0
