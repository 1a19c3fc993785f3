"""A serving worker: gRPC, and metrics, health and artifacts over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from codegen_mcp.bootstrap.engine import Engine, open_engine
from codegen_mcp.bootstrap.http import Http, open_http
from codegen_mcp.bootstrap.isolation import worker_facts
from codegen_mcp.bootstrap.lifecycle import joining, open_agent
from codegen_mcp.coordinator.auth.authenticator import open_authenticator
from codegen_mcp.coordinator.auth.grpc_auth import AuthInterceptor
from codegen_mcp.coordinator.auth.link_guard import refuse_auth_links
from codegen_mcp.coordinator.auth.reach import check_reach
from codegen_mcp.coordinator.auth.tls import ServerIdentity
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.server.lifecycle_agent import LifecycleAgent
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.metrics import WorkerMetrics
from codegen_mcp.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A serving worker."""

    engine: Engine
    server: WorkerServer
    metrics: WorkerMetrics
    http: Http
    agent: LifecycleAgent | None
    """None where it joins no coordinator."""

    @property
    def address(self) -> str:
        """``host:port`` that clients use."""
        return f"127.0.0.1:{self.server.port}"


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[Worker]:
    """Open a serving worker; leaving the block ends its calls at once."""
    joins = joining(settings)
    check_reach(
        settings.host,
        asks=settings.auth.asks or joins.asks,
        insecure_no_auth=settings.insecure_no_auth,
    )
    refuse_auth_links(settings.auth_links)
    identity = None if settings.tls is None else ServerIdentity(settings.tls)
    metrics = WorkerMetrics(worker_id=settings.worker_id, version=__version__)
    async with AsyncExitStack() as stack:
        authenticator = await stack.enter_async_context(open_authenticator(settings.auth))
        asks = authenticator.asks and not joins.token
        engine = await stack.enter_async_context(open_engine(settings, metrics))
        metrics.watch(engine.sessions)
        facts = worker_facts(settings, engine.host, engine.choice, engine.egress)
        server = WorkerServer(
            engine.sessions,
            engine.tasks,
            ServerConfig(
                worker_id=settings.worker_id,
                host=settings.host,
                port=settings.grpc_port,
                facts=facts,
                dial_token=joins.token,
                dial_token_required=joins.required,
            ),
            metrics,
            artifacts=engine.artifacts,
            checkpoints=engine.checkpoints,
            # A worker on its own lets a caller in or not; who owns what is a coordinator's to say,
            # and with one, nobody else calls.
            gates=[AuthInterceptor(authenticator)] if asks else [],
            credentials=None if identity is None else identity.grpc(),
        )
        http = await stack.enter_async_context(
            open_http(
                settings,
                state=engine.host.state.root,
                artifacts=engine.artifacts,
                metrics=metrics,
                ready=lambda: server.serving,
                facts=facts,
                tls=None if identity is None else identity.http(),
            )
        )
        await stack.enter_async_context(server)
        agent = await stack.enter_async_context(open_agent(settings, engine, server, joins.token))
        yield Worker(engine=engine, server=server, metrics=metrics, http=http, agent=agent)
