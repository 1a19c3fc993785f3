"""MCP over streamable HTTP at /mcp: every protocol revision at once, with or without tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codegen_mcp.coordinator.auth.base import Authenticator, Peer
from codegen_mcp.coordinator.auth.config import AuthConfig
from codegen_mcp.coordinator.auth.desk import Desk
from codegen_mcp.coordinator.auth.mcp_auth import (
    PrincipalVerifier,
    UnavailableGate,
    auth_settings,
    mcp_principal,
)
from codegen_mcp.coordinator.auth.reach import is_local
from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.mcp.config import McpConfig
from codegen_mcp.coordinator.mcp.server import GONE, Context, Face, McpServer
from codegen_mcp.coordinator.principal import Principal

PATH = "/mcp"
MAX_REQUEST_BYTES = 8 * 1024 * 1024
"""Of one message: a file of some MiB can be written by one call."""
MAX_CONNECTIONS = 1000
"""Of stateful clients (revisions up to 2025-11-25)."""
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


@asynccontextmanager
async def open_mcp_app(
    gateway: Gateway,
    face: Face,
    config: McpConfig,
    *,
    authenticator: Authenticator,
    auth: AuthConfig,
    host: str,
    url: str,
    public_url: str = "",
    desk: Desk | None = None,
) -> AsyncIterator[ASGIApp]:
    """Open the application; it also answers the addresses that tell clients where to get tokens.

    Args:
        gateway: Where sessions are.
        face: What is offered.
        config: Names and budgets.
        authenticator: Who says who calls.
        auth: What it was opened with.
        host: Address that is bound.
        url: Where it is reached: told to clients that ask where to get tokens.
        public_url: Where clients reach it, if that is another address: its name is good too.
        desk: Where calls report.
    """
    everybody = None if authenticator.asks else await authenticator.authenticate(None, Peer())

    def principal_of(ctx: Context) -> Principal:
        return everybody or mcp_principal(asks=True)

    server = McpServer(gateway, face, config, principal_of=principal_of, desk=desk)
    app = server.protocol.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=MAX_REQUEST_BYTES,
        max_sessions=MAX_CONNECTIONS,
        transport_security=known_names(host, public_url),
        auth=auth_settings(auth, url + PATH) if authenticator.asks else None,
        token_verifier=PrincipalVerifier(authenticator) if authenticator.asks else None,
    )
    async with app.router.lifespan_context(app):
        yield GoneWatch(UnavailableGate(app))


def known_names(host: str, public_url: str) -> TransportSecuritySettings:
    """Refuse requests by other names where only this machine shall reach us.

    A web page that has its own name point to 127.0.0.1 (DNS rebinding) could else use a server that
    asks for no token. Beyond loopback names are the operator's matter.
    """
    if not is_local(host):
        return TransportSecuritySettings(enable_dns_rebinding_protection=False)
    hosts = [f"{name}:*" for name in dict.fromkeys((*LOCAL_NAMES, host))]
    origins = [f"{scheme}://{name}" for scheme in ("http", "https") for name in hosts]
    if public_url:
        parts = urlsplit(public_url)
        hosts += [parts.netloc, f"{parts.hostname}:*"]
        origins.append(f"{parts.scheme}://{parts.netloc}")
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True, allowed_hosts=hosts, allowed_origins=origins
    )


class GoneWatch:
    """ASGI: tells the handler of a request when its caller has left.

    Up to revision 2025-11-25 the library lets a call go on without its caller, for one who asks
    again for the stream. Streams are not kept here, so nobody ever could.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gone = scope[GONE] = asyncio.Event()

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
            return message

        await self._app(scope, watched, send)
