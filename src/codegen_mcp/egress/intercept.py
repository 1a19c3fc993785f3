"""Connections whose TLS ends here: requests get their secrets, answers lose them again."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Sequence

import h11

from codegen_mcp.egress.authority import Authority
from codegen_mcp.egress.base import Unreachable
from codegen_mcp.egress.config import EgressConfig
from codegen_mcp.egress.hosts import BadHost, normal_host
from codegen_mcp.egress.http_messages import BadMessage, Route, split_authority
from codegen_mcp.egress.http_relay import Fields, HttpRelay
from codegen_mcp.egress.ledger import Ledger
from codegen_mcp.egress.placeholders import Hider, Placeholder, put_in
from codegen_mcp.egress.streams import ByteStream, TlsStream
from codegen_mcp.egress.tunnel import Change

_PLAIN = (b"identity", b"")


def server_trust(config: EgressConfig) -> ssl.SSLContext:
    """Return what servers are checked with: the system's authorities, and the operator's."""
    context = ssl.create_default_context()
    if config.ca_file is not None:
        context.load_verify_locations(config.ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


async def intercept(
    host: str,
    port: int,
    client: ByteStream,
    server: ByteStream,
    *,
    again: Callable[[], Awaitable[ByteStream]],
    placeholders: Sequence[Placeholder],
    authority: Authority,
    trust: ssl.SSLContext,
    config: EgressConfig,
    ledger: Ledger,
) -> None:
    """Serve a tunnel as the host, to its end.

    Args:
        host: Normal, as promised to the client.
        port: Likewise.
        client: Speaks TLS next.
        server: Connected to the host; nothing was said yet.
        again: Connects once more, for a client that asks on after the server closed.
        placeholders: Of the secrets that this host may have.
        authority: The session's.
        trust: What the server's certificate is checked with.
        config: Bounds.
        ledger: Counts, and told of what is refused.

    Raises:
        OSError: One side broke. OverLimit, Idle.
    """
    near = TlsStream(client, authority.context(host), server_side=True)
    try:
        async with asyncio.timeout(config.header_s):
            await near.handshake()
    except (ssl.SSLError, TimeoutError):
        ledger.refuse(
            host, port, "a host with a secret is spoken to in TLS that trusts the session's proxy"
        )
        return
    way = _SecretWay(host, port, server, again, placeholders, trust, config)
    relay = HttpRelay(near, config, ledger, way)
    with contextlib.suppress(ssl.SSLError):
        if await relay.serve() is not None:
            await relay.answer(400, "there is no proxy behind this one")
    await near.aclose()


class _SecretWay:
    """Requests of one host."""

    def __init__(
        self,
        host: str,
        port: int,
        server: ByteStream,
        again: Callable[[], Awaitable[ByteStream]],
        placeholders: Sequence[Placeholder],
        trust: ssl.SSLContext,
        config: EgressConfig,
    ) -> None:
        self._host = host
        self._port = port
        self._server: ByteStream | None = server
        self._again = again
        self._placeholders = placeholders
        self._trust = trust
        self._config = config

    def route(self, request: h11.Request) -> Route:
        """Read the request; it must be for the host whose certificate was shown."""
        if not request.target.startswith(b"/") and request.target != b"*":
            raise BadMessage(400, "a request to a server names a path")
        authority = next((v for n, v in request.headers if n == b"host"), b"")
        host, port = split_authority(authority, self._port)
        try:
            fits = normal_host(host) == self._host and port == self._port
        except BadHost:
            fits = False
        if not fits:
            raise BadMessage(421, f"this connection is to {self._host}:{self._port} alone")
        return Route(self._host, self._port, request.target, authority)

    async def open(self, route: Route) -> ByteStream:
        """Speak TLS to the server and check who it is."""
        server, self._server = self._server, None
        if server is None:
            server = await self._again()
        far = TlsStream(server, self._trust, server_hostname=self._host)
        try:
            async with asyncio.timeout(self._config.connect_s):
                await far.handshake()
        except ssl.SSLCertVerificationError as error:
            await server.aclose()
            raise Unreachable(f"its certificate is not good: {error.verify_message}") from None
        except (OSError, TimeoutError) as error:
            await server.aclose()
            raise Unreachable(f"it speaks no TLS ({type(error).__name__})") from None
        return far

    def request_fields(self, fields: Fields) -> Fields:
        """Put the values in; answers must be readable, to take them out again."""
        kept = [field for field in fields if field[0] != b"accept-encoding"]
        return [*put_in(kept, self._placeholders), (b"accept-encoding", b"identity")]

    def response_fields(self, fields: Fields) -> Fields:
        """Take values out."""
        for name, value in fields:
            if name == b"content-encoding" and value.strip().lower() not in _PLAIN:
                raise BadMessage(
                    502, "the server compresses though it was asked not to; it cannot be checked"
                )
        hider = Hider(self._placeholders)
        return [(name, hider.whole(value)) for name, value in fields]

    def body_change(self) -> Change:
        """Take values out of a body."""
        return Hider(self._placeholders).hide
