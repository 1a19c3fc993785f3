"""A serving worker: gRPC, and metrics, health and artifacts over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from codegen_mcp.bootstrap.engine import Engine, isolation, open_engine
from codegen_mcp.bootstrap.http import Http, open_http
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.config import ServerConfig
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

    @property
    def address(self) -> str:
        """``host:port`` that clients use."""
        return f"127.0.0.1:{self.server.port}"


def check_reach(settings: Settings) -> None:
    """Refuse to listen beyond this machine unless that was said aloud.

    Raises:
        InvalidRequest: The address is not loopback and ``insecure_no_auth`` is not set.
    """
    if not settings.is_loopback and not settings.insecure_no_auth:
        raise InvalidRequest(
            f"host {settings.host!r} can be reached from other machines, and callers are not "
            "authenticated: whoever reaches it runs code. Bind 127.0.0.1, put an authenticating "
            "proxy before it, or accept the risk with --insecure-no-auth"
        )


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[Worker]:
    """Open a serving worker; leaving the block ends its calls at once."""
    check_reach(settings)
    metrics = WorkerMetrics(worker_id=settings.worker_id, version=__version__)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine(settings, metrics))
        metrics.watch(engine.sessions)
        server = WorkerServer(
            engine.sessions,
            engine.tasks,
            ServerConfig(
                worker_id=settings.worker_id,
                host=settings.host,
                port=settings.grpc_port,
                facts=isolation(engine.choice.probe),
            ),
            metrics,
            artifacts=engine.artifacts,
            checkpoints=engine.checkpoints,
        )
        http = await stack.enter_async_context(
            open_http(
                settings,
                state=engine.host.state.root,
                artifacts=engine.artifacts,
                metrics=metrics,
                ready=lambda: server.serving,
            )
        )
        await stack.enter_async_context(server)
        yield Worker(engine=engine, server=server, metrics=metrics, http=http)
