"""The proxy of one task: HTTP with CONNECT, and SOCKS5, on one listening socket.

It serves the sockets that it accepts and opens none inside. When it is left every connection is
cut: nothing of a task goes on outside after the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

import h11
import structlog

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.egress import socks
from codegen_mcp.egress.base import Refused, Unreachable
from codegen_mcp.egress.config import EgressConfig
from codegen_mcp.egress.door import Door, destination
from codegen_mcp.egress.http_messages import BadMessage, Route, proxied_route, split_authority
from codegen_mcp.egress.http_relay import Fields, HttpRelay
from codegen_mcp.egress.ledger import OverLimit
from codegen_mcp.egress.streams import ByteStream, PlainStream
from codegen_mcp.egress.tunnel import Change, Idle

log = structlog.get_logger()

BACKLOG = 128
END_S = 2.0


class SessionProxy:
    """Serves while it is entered. An async context manager that owns its connections.

    Args:
        door: The way out of the task.
        listener: A bound socket that does not listen; stays the caller's. It refuses connections
            again when this is left.
    """

    def __init__(self, door: Door, listener: socket.socket) -> None:
        self._door = door
        self._config: EgressConfig = door.config
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], PlainStream] = {}

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            SandboxUnavailable: The port is taken inside.
        """
        own = self._listener.dup()
        try:
            own.setblocking(False)
            self._server = await asyncio.start_server(self._accept, sock=own, backlog=BACKLOG)
        except OSError as error:
            own.close()
            raise SandboxUnavailable(
                f"the way out cannot be opened ({error.strerror}); something in the session uses "
                "its port"
            ) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Refuse what is new, cut what there is."""
        with contextlib.suppress(OSError):
            # The one call that ends listening and keeps the port (shutdown(2) on Linux).
            self._listener.shutdown(socket.SHUT_RD)
        if self._server is not None:
            self._server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_S)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection in the task that asyncio made for it, which is ours from here."""
        task = asyncio.current_task()
        assert task is not None
        client = PlainStream(reader, writer)
        if len(self._connections) >= self._config.max_connections:
            self._door.ledger.refuse(
                "", 0, f"more than {self._config.max_connections} connections at once"
            )
            client.abort()
            return
        self._connections[task] = client
        try:
            await self._serve(client)
        except (OSError, OverLimit, Idle, TimeoutError):
            pass  # one side went away, or a bound was met, which is written down
        except asyncio.CancelledError:
            pass  # only __aexit__ cancels; asyncio would report it as a fault
        except Exception:
            log.exception("egress.fault")
        finally:
            del self._connections[task]
            client.abort()

    async def _serve(self, client: PlainStream) -> None:
        async with asyncio.timeout(self._config.header_s):
            first = await client.read()
        if not first:
            return
        client.unread(first)
        if first[0] == socks.VERSION:
            async with asyncio.timeout(self._config.header_s + self._config.connect_s):
                promised = await socks.greet(client, self._door)
        else:
            promised = await self._http(client)
        if promised is not None:
            host, port, server = promised
            try:
                await self._door.tunnel(host, port, client, server)
                await client.aclose()
            finally:
                server.abort()

    async def _http(self, client: PlainStream) -> tuple[str, int, PlainStream] | None:
        relay = HttpRelay(client, self._config, self._door.ledger, _ProxyWay(self._door))
        request = await relay.serve()
        if request is None:
            await client.aclose()
            return None
        try:
            host, port = self._connect_target(request)
            host = destination(self._door, host, port)
            server = await self._door.connect(host, port)
        except BadMessage as error:
            await relay.answer(error.status, str(error))
        except Refused as error:
            await relay.answer(403, f"{host}:{port}: {error}")
        except Unreachable as error:
            await relay.answer(502, f"{host}:{port}: {error}")
        else:
            try:
                early = await relay.accept_connect()
                client.unread(early)
            except BaseException:
                server.abort()
                raise
            return host, port, server
        await client.aclose()
        return None

    def _connect_target(self, request: h11.Request) -> tuple[str, int]:
        host, colon, port = request.target.rpartition(b":")
        if not colon or not host or not port.isdigit():
            raise BadMessage(400, "CONNECT names HOST:PORT")
        return split_authority(request.target, 0)


class _ProxyWay:
    """Requests with absolute URLs, to wherever these say; nothing is changed in them."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def route(self, request: h11.Request) -> Route:
        return proxied_route(request)

    async def open(self, route: Route) -> ByteStream:
        host = destination(self._door, route.host, route.port)
        return await self._door.connect(host, route.port)

    def request_fields(self, fields: Fields) -> Fields:
        return fields

    def response_fields(self, fields: Fields) -> Fields:
        return fields

    def body_change(self) -> Change | None:
        return None


MakeProxy = Callable[[Door, socket.socket], SessionProxy]
