"""Who calls over MCP: the SDK's resource-server auth, asking our authenticator.

Give ``PrincipalVerifier`` as ``token_verifier`` and ``auth_settings(...)`` as ``auth`` to
``streamable_http_app``, wrap the application in ``UnavailableGate``, and call ``mcp_principal`` in
a tool handler: the SDK carries the request's context to it, also in the stateful protocol.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from pydantic import ConfigDict
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codegen_mcp.coordinator.auth.base import NO_TOKEN, Authenticator, Peer
from codegen_mcp.coordinator.auth.config import AuthConfig
from codegen_mcp.coordinator.principal import ANYBODY, Principal
from codegen_mcp.core.errors import Unauthenticated, Unavailable

_TROUBLE: ContextVar[list[Unavailable] | None] = ContextVar("auth_trouble", default=None)


class PrincipalToken(AccessToken):
    """A verified token with the principal it stands for."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    principal: Principal


class PrincipalVerifier(TokenVerifier):
    """The SDK's ``TokenVerifier`` over an ``Authenticator``."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return whose token it is; None when it is not good."""
        try:
            principal = await self._authenticator.authenticate(token, Peer())
        except Unauthenticated:
            return None
        except Unavailable as error:
            trouble = _TROUBLE.get()
            if trouble is None:
                raise
            trouble.append(error)
            return None
        # The SDK binds a stateful session to client_id and subject: only its maker may use it. It
        # keeps the token itself nowhere that we need, so it does not get it.
        return PrincipalToken(
            token="",
            client_id=principal.name,
            subject=principal.name,
            scopes=[],
            principal=principal,
        )


def mcp_principal(*, asks: bool) -> Principal:
    """Return who makes the MCP request under way.

    Args:
        asks: ``Authenticator.asks``; False takes everybody as one.

    Raises:
        Unauthenticated: Nobody was authenticated.
    """
    if not asks:
        return ANYBODY
    token = get_access_token()
    if not isinstance(token, PrincipalToken):
        raise Unauthenticated(NO_TOKEN)
    return token.principal


def auth_settings(config: AuthConfig, url: str) -> AuthSettings:
    """Say what the SDK tells clients that come without a token.

    With an issuer of JWTs at an address, they are told it (RFC 9728, under
    ``/.well-known/oauth-protected-resource``); static tokens have none to be told.

    Args:
        config: What is asked for.
        url: Of the MCP endpoint, as clients reach it.
    """
    issuer = config.jwt.issuer if config.jwt is not None else ""
    told = issuer.startswith(("https://", "http://"))
    # As text: the model keeps an address as it is written, and issuers are compared so.
    return AuthSettings.model_validate(
        {
            "issuer_url": issuer if told else url,
            "resource_server_url": url if told else None,
            "validate_token_resource": False,  # the audience is ours to check: jwt.py
        }
    )


class UnavailableGate:
    """ASGI: answers 503, not 401, where it could not be told whether a token is good.

    A client that is told 401 throws its token away.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trouble: list[Unavailable] = []
        answered = False

        async def watched(message: Message) -> None:
            nonlocal answered
            if not trouble:
                await send(message)
            elif not answered:
                answered = True
                error = trouble[0]
                body: dict[str, Any] = {"error": "temporarily_unavailable"}
                body["error_description"] = error.message
                headers = {"retry-after": f"{max(1, round(error.retry_after_s or 1))}"}
                response = JSONResponse(body, status_code=503, headers=headers)
                await response(scope, receive, send)

        token = _TROUBLE.set(trouble)
        try:
            await self._app(scope, receive, watched)
        finally:
            _TROUBLE.reset(token)
