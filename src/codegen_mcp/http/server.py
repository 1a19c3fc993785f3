"""uvicorn inside our event loop, without its signal handlers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import structlog
import uvicorn
from starlette.types import ASGIApp

from codegen_mcp.http.protocol import MAX_CONNECTIONS, bounded_protocol, look_at_all

log = structlog.get_logger()

GRACE_S = 1
"""For responses under way when it stops."""
TICK_S = 1.0


class _Server(uvicorn.Server):
    """Ticks once a second, for the Date header, in place of ten times."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()

    async def main_loop(self) -> None:
        """Return when it is to stop."""
        while not await self.on_tick(0):
            look_at_all(self.server_state.connections)
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self.stopping.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the worker."""
        yield


class HttpServer:
    """An async context manager: open means serving.

    Raises (on entering):
        OSError: The address cannot be bound; the message names it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        setting: str = "METRICS_PORT",
        tls: ssl.SSLContext | None = None,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Wire it.

        Args:
            app: What is served.
            host: Address to bind.
            port: 0 takes a free one.
            setting: What the port comes from, for the message when it is taken.
            tls: Serve HTTPS by it; None serves plaintext.
            connections: At once; more close those that wait.
        """
        self._tls = tls
        self._host = host
        self._setting = setting
        self._asked = port
        self._server = _Server(
            uvicorn.Config(
                app,
                http=bounded_protocol(connections),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._serving: asyncio.Task[None] | None = None
        self.port = 0
        """The bound one."""

    async def __aenter__(self) -> HttpServer:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listener = socket.create_server((self._host, self._asked), family=family)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot listen on {self._host!r} port {self._asked}: {error.strerror}; choose "
                f"another {self._setting}, or 0 for none",
            ) from error
        # Connections inherit it. Else the kernel holds back a body that follows its head at once.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._serve(listener), name="http-server")
        log.info("http.listening", host=self._host, port=self.port)
        return self

    async def _serve(self, listener: socket.socket) -> None:
        config = self._server.config
        config.load()
        config.ssl = self._tls
        with listener:
            await self._server.serve(sockets=[listener])

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._server.stopping.set()
        if self._serving is not None:
            await self._serving
