"""What a worker serves over HTTP: metrics, health and the links of its artifacts."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from starlette.routing import Mount
from starlette.types import ASGIApp

from codegen_mcp.core.clock import SystemClock
from codegen_mcp.engine.artifacts.keeper import ArtifactKeeper
from codegen_mcp.engine.durable import write_file
from codegen_mcp.http.app import make_app
from codegen_mcp.http.artifact_links import ArtifactLinks
from codegen_mcp.http.artifacts import Guard, artifact_route
from codegen_mcp.http.link_key import load_key
from codegen_mcp.http.protocol import MAX_CONNECTIONS
from codegen_mcp.http.server import HttpServer
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.metrics import CONTENT_TYPE

KEY_FILE = "links.key"
PORT_FILE = "http.port"
ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})


class Shown(Protocol):
    """Metrics of one process."""

    def render(self) -> bytes:
        """Write them all, for Prometheus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """The open servers; None where one is off. Both may be the same."""

    metrics: HttpServer | None
    artifacts: HttpServer | None


@asynccontextmanager
async def open_http(
    settings: Settings,
    *,
    state: Path,
    artifacts: ArtifactKeeper,
    metrics: Shown,
    ready: Callable[[], bool],
    facts: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    face: ASGIApp | None = None,
    connections: int = MAX_CONNECTIONS,
    guard: Guard | None = None,
) -> AsyncIterator[Http]:
    """Open METRICS_PORT and HTTP_PORT; while the latter is open, artifacts have links.

    Args:
        settings: Ports, addresses.
        state: The state directory: it keeps the links' key and the port.
        artifacts: What links are for.
        metrics: What Prometheus scrapes.
        ready: Whether new work is taken.
        facts: Of the worker, shown with its readiness.
        tls: Serve HTTPS by it.
        face: Gets what HTTP_PORT has no other answer for; metrics are then beside it.
        connections: Of HTTP_PORT, at once.
        guard: Asked about each use of a link.

    Raises:
        OSError: A port is taken. Corrupt, Unavailable: The key of the links.
    """
    wanted = 0 if settings.http_port == "auto" else settings.http_port
    serves_links = settings.http_port != 0
    shared = bool(wanted) and wanted == settings.metrics_port
    metrics_server: HttpServer | None = None
    link_server: HttpServer | None = None
    async with AsyncExitStack() as stack:
        if serves_links:
            key = await asyncio.to_thread(load_key, state / KEY_FILE)

            def base_url() -> str:
                assert link_server is not None
                return settings.public_url or own_url(
                    settings.host, link_server.port, secure=tls is not None
                )

            links = ArtifactLinks(key, base_url, SystemClock())
            app = make_app(
                ready=ready,
                facts=facts,
                metrics=metrics.render if shared or face is not None else None,
                metrics_type=CONTENT_TYPE,
                routes=[
                    artifact_route(artifacts, links, guard),
                    *([Mount("/", face)] if face is not None else []),
                ],
            )

            def server(port: int) -> HttpServer:
                return HttpServer(
                    app,
                    host=settings.host,
                    port=port,
                    setting="HTTP_PORT",
                    tls=tls,
                    connections=connections,
                )

            if settings.http_port == "auto":
                link_server = await stack.enter_async_context(
                    remembered_port(server, state / PORT_FILE)
                )
            else:
                link_server = await stack.enter_async_context(server(wanted))
            artifacts.serve_links(links)
            stack.callback(artifacts.serve_links, None)
        if shared:
            metrics_server = link_server
        elif settings.metrics_port:
            app = make_app(
                ready=ready, facts=facts, metrics=metrics.render, metrics_type=CONTENT_TYPE
            )
            metrics_server = await stack.enter_async_context(
                HttpServer(app, host=settings.host, port=settings.metrics_port, tls=tls)
            )
        yield Http(metrics=metrics_server, artifacts=link_server)


@asynccontextmanager
async def remembered_port(
    make: Callable[[int], HttpServer], file: Path
) -> AsyncIterator[HttpServer]:
    """Serve on the port of the last start if it is free, so that links go on to work."""

    def last() -> int:
        try:
            port = int(file.read_text())
        except (OSError, ValueError):
            return 0
        return port if 0 < port < 65536 else 0

    async with AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(make(await asyncio.to_thread(last)))
        except OSError:
            server = await stack.enter_async_context(make(0))
        text = str(server.port).encode()
        await asyncio.to_thread(lambda: write_file(file, text, durable=False))
        yield server


def own_url(host: str, port: int, *, secure: bool = False) -> str:
    """What to reach this worker by; a name of this machine where it listens everywhere."""
    if host in ANY_ADDRESS:
        host = socket.gethostname()
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
