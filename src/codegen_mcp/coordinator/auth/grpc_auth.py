"""Who calls over gRPC: ``authorization: Bearer`` metadata, or a verified client certificate.

Put the interceptor after the server's ``EdgeInterceptor``, which then turns its errors into
statuses. A handler finds the caller with ``principal.caller()``.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc import aio
from structlog.contextvars import bind_contextvars

from codegen_mcp.coordinator.auth.base import Authenticator, BadToken, Peer
from codegen_mcp.coordinator.principal import CALLER
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.server.status import failure_of, trailers

Context: TypeAlias = "aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Next: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]"

OPEN = ("/grpc.health.v1.Health/", "/codegen.v1.WorkerLifecycle/")
"""Not asked here: health is for probes, and workers show a token of their own
(``worker_auth.WorkerGate``, which that service asks itself)."""
_STANDARD = "/grpc."

CERTIFICATE_NAMES = ("peer_uri", "peer_email", "peer_dns", "x509_common_name")
"""Of a verified client certificate, the first that it has: subject alternative names (RFC 5280,
4.2.1.6) before the common name, as RFC 6125 prefers."""

NOBODY = Peer(address="", certificate="")
"""Where nobody is asked."""


class AuthInterceptor(aio.ServerInterceptor):
    """Lets a call reach its handler only when its caller is known."""

    def __init__(
        self, authenticator: Authenticator, *, open_to_all: tuple[str, ...] = OPEN
    ) -> None:
        self._authenticator = authenticator
        self._open = open_to_all

    async def intercept_service(  # type: ignore[override]  # None: grpc answers UNIMPLEMENTED
        self, continuation: Next, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the method's handler with the question before it."""
        method = handler_call_details.method
        handler: Handler | None = await continuation(handler_call_details)
        if handler is None or method.startswith(self._open):
            return handler
        return self._wrap(handler, standard=method.startswith(_STANDARD))

    def _wrap(self, handler: Handler, *, standard: bool) -> Handler:
        serializers = (handler.request_deserializer, handler.response_serializer)
        kinds: tuple[tuple[Callable[..., Any] | None, Callable[..., Handler]], ...] = (
            (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
            (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        )
        for behaviour, make in kinds:
            if behaviour is not None:
                return make(self._asking(behaviour, standard=standard), *serializers)
        raise TypeError("a handler without a behaviour")

    def _asking(self, behaviour: Callable[..., Any], *, standard: bool) -> Callable[..., Any]:
        """Wrap it by its kind: a generator of answers, or a coroutine function."""
        if inspect.isasyncgenfunction(behaviour):

            async def stream(request: Any, context: Context) -> Any:
                await self._ask(context, standard=standard)
                async for message in behaviour(request, context):
                    yield message

            return stream

        async def call(request: Any, context: Context) -> Any:
            await self._ask(context, standard=standard)
            return await behaviour(request, context)

        return call

    async def _ask(self, context: Context, *, standard: bool) -> None:
        try:
            # To read the connection's facts costs as much as all the rest of this.
            peer = peer_of(context) if self._authenticator.asks else NOBODY
            principal = await self._authenticator.authenticate(bearer_of(context), peer)
        except WorkerError as error:
            if not standard:
                raise
            # Reflection is of gRPC's own making: nobody before it translates.
            failure = failure_of(error)
            await context.abort(failure.code, failure.message, trailers(failure, ""))
        else:
            CALLER.set(principal)
            bind_contextvars(principal=principal.name)


def bearer_of(context: Context) -> str | None:
    """Return the token of a call's metadata; None when there is none (RFC 6750, 2.1).

    Raises:
        BadToken: There are several, or it is of another scheme.
    """
    found = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not found:
        return None
    value = found[0]
    if len(found) > 1 or not isinstance(value, str):
        raise BadToken("several authorization headers")
    scheme, _, token = value.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise BadToken("the authorization header has no bearer token")
    return token


def peer_of(context: Context) -> Peer:
    """Return where a call came from, with the name in its verified client certificate."""
    facts = context.auth_context() or {}
    names = (value for key in CERTIFICATE_NAMES for value in facts.get(key, ()))
    certificate = next((n.decode("utf-8", "replace") for n in names if n), "")
    return Peer(address=context.peer() or "", certificate=certificate)
