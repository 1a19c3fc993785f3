"""The face for agents: over HTTP with gRPC beside it, and over the process's standard streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.bootstrap.coordinator import fleet_numbers
from codegen_mcp.bootstrap.http import open_http, own_url
from codegen_mcp.bootstrap.isolation import sandbox_lines, worker_facts
from codegen_mcp.bootstrap.local import LocalGateway, open_local_gateway
from codegen_mcp.bootstrap.process import (
    CONNECTIONS,
    FILES,
    open_many_files,
    prepare_process,
    settle_memory,
    wind_down,
)
from codegen_mcp.coordinator.app import CoordinatorConfig, CoordinatorServer
from codegen_mcp.coordinator.auth.authenticator import open_authenticator
from codegen_mcp.coordinator.auth.grpc_auth import AuthInterceptor
from codegen_mcp.coordinator.auth.link_guard import LinkGuard
from codegen_mcp.coordinator.auth.reach import check_reach, reach_lines
from codegen_mcp.coordinator.auth.tls import ServerIdentity
from codegen_mcp.coordinator.mcp.http import PATH, open_mcp_app
from codegen_mcp.coordinator.mcp.server import Face, McpServer
from codegen_mcp.coordinator.mcp.sessions import DefaultSession, SessionChoice
from codegen_mcp.coordinator.mcp.stdio import connected
from codegen_mcp.coordinator.principal import LOCAL, Principal
from codegen_mcp.core.errors import Unavailable
from codegen_mcp.http.server import HttpServer
from codegen_mcp.server.signals import ShutdownSignals
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.coordinator_metrics import CoordinatorMetrics
from codegen_mcp.telemetry.metrics import WorkerMetrics
from codegen_mcp.version import __version__

HTTP_PORT = 8080
"""Where none is set."""
PLACES = 16
"""State directories that stdio servers of one user choose from: each needs one of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Everything in one process, serving."""

    local: LocalGateway
    grpc: CoordinatorServer
    http: HttpServer
    mcp_url: str
    """Where agents connect."""


class BothMetrics:
    """Those of the worker and of the coordinator: no name is in both."""

    def __init__(self, worker: WorkerMetrics, coordinator: CoordinatorMetrics) -> None:
        self._parts = (worker, coordinator)

    def render(self) -> bytes:
        """Write them one after the other, as the text format allows."""
        return b"".join(part.render() for part in self._parts)


@asynccontextmanager
async def open_served(settings: Settings, face: Face | None = None) -> AsyncIterator[Served]:
    """Open worker, gateway, gRPC and HTTP.

    Args:
        settings: ``http_port`` 0 or ``auto`` takes a free port.
        face: What is offered to agents; None: the tools and resources that there are.

    Raises:
        InvalidRequest: It would be open to other machines without asking who they are.
        WorkerError, OSError: As of its parts.
    """
    asks = settings.auth.asks
    files = open_many_files(FILES)
    check_reach(settings.host, asks=asks, insecure_no_auth=settings.insecure_no_auth)
    identity = None if settings.tls is None else ServerIdentity(settings.tls)
    async with AsyncExitStack() as stack:
        authenticator = await stack.enter_async_context(open_authenticator(settings.auth))
        local = await stack.enter_async_context(open_local_gateway(settings))
        routed = CoordinatorMetrics(
            lambda: fleet_numbers(local.routing.workers),
            name=settings.coordinator_name,
            version=__version__,
        )
        grpc = CoordinatorServer(
            local.gateway,
            CoordinatorConfig(host=settings.host, port=settings.grpc_port),
            routed,
            gates=[AuthInterceptor(authenticator)],
            credentials=None if identity is None else identity.grpc(),
        )
        app = await stack.enter_async_context(
            open_mcp_app(
                local.gateway,
                face or Face(),
                settings.mcp,
                authenticator=authenticator,
                auth=settings.auth,
                host=settings.host,
                url=settings.public_url
                or own_url(settings.host, _known_port(settings), secure=identity is not None),
                public_url=settings.public_url,
                desk=local.routing.desk,
            )
        )
        http = await stack.enter_async_context(
            open_http(
                settings.model_copy(update={"http_port": settings.http_port or "auto"}),
                state=local.engine.host.state.root,
                artifacts=local.engine.artifacts,
                metrics=BothMetrics(local.metrics, routed),
                ready=lambda: grpc.serving,
                facts=worker_facts(
                    settings, local.engine.host, local.engine.choice, local.engine.egress
                ),
                tls=None if identity is None else identity.http(),
                face=app,
                connections=min(CONNECTIONS, files // 4),
                guard=LinkGuard(
                    authenticator,
                    local.engine.artifacts,
                    local.routing.directory,
                    always=settings.auth_links,
                )
                if authenticator.asks
                else None,
            )
        )
        assert http.artifacts is not None
        await stack.enter_async_context(grpc)
        url = settings.public_url or own_url(
            settings.host, http.artifacts.port, secure=identity is not None
        )
        yield Served(local=local, grpc=grpc, http=http.artifacts, mcp_url=url + PATH)


def _known_port(settings: Settings) -> int:
    """Return the port that agents use, as far as it is known before it is bound."""
    return HTTP_PORT if settings.http_port in (0, "auto") else int(settings.http_port)


async def serve_all(
    settings: Settings, announce: Callable[[str], object], face: Face | None = None
) -> int:
    """Serve until told to stop; returns the exit code. Signals are as of ``serve``."""
    prepare_process(settings)
    async with ShutdownSignals() as signals, open_served(settings, face) as served:
        engine = served.local.engine
        for line in sandbox_lines(settings, engine.host, engine.choice):
            announce(line)
        for line in reach_lines(
            settings.host, asks=settings.auth.asks, tls=settings.tls is not None
        ):
            announce(line)
        announce(f"gRPC listening on {settings.host}:{served.grpc.port}")
        announce(f"MCP at {served.mcp_url}, beside it /metrics, /healthz and /readyz")
        settle_memory()
        await signals.drain.wait()
        announce("draining: no new work; a second signal ends at once")
        await served.grpc.drain()
        await served.local.worker.drain()
        await wind_down(signals, served.local.engine)
        await served.grpc.stop(0 if signals.exit.is_set() else 1)
    return 0


async def serve_stdio(settings: Settings, announce: Callable[[str], object]) -> int:
    """Serve one client on the standard streams until it, or a signal, says stop."""
    prepare_process(settings)
    async with ShutdownSignals() as signals, _open_somewhere(settings) as local:
        for line in sandbox_lines(settings, local.engine.host, local.engine.choice):
            announce(line)
        default = DefaultSession()
        user = Principal(name=LOCAL, quotas=settings.auth.quotas)
        server = McpServer(
            local.gateway,
            Face(),
            settings.mcp,
            principal_of=lambda _: user,
            default=default,
        )
        async with connected(server.protocol) as client:
            announce("MCP on standard input and output")
            settle_memory()
            told = asyncio.create_task(signals.drain.wait())
            await asyncio.wait([client, told], return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
        await SessionChoice(local.gateway, user, default).leave()
        await local.worker.drain()
        await wind_down(signals, local.engine)
    return 0


@asynccontextmanager
async def _open_somewhere(settings: Settings) -> AsyncIterator[LocalGateway]:
    """Open in the first state directory that no living process has.

    Every client starts a server of its own, on the same settings.
    """
    base = settings.base_workspace
    async with AsyncExitStack() as stack:
        for number in range(1, PLACES + 1):
            place = base if number == 1 else Path(f"{base}-{number}")
            here = settings.model_copy(update={"base_workspace": place})
            try:
                local = await stack.enter_async_context(open_local_gateway(here))
            except Unavailable as error:
                if error.reason != "STATE_DIRECTORY_IN_USE" or number == PLACES:
                    raise
                continue
            yield local
            return
