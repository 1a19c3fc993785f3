"""What every call passes through: admission, request id, log context, and the error table."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc
import structlog
from grpc import aio
from structlog.contextvars import bind_contextvars

from codegen_mcp.core.errors import NotFound
from codegen_mcp.server.admission import Admission
from codegen_mcp.server.caller_gate import CallerGate
from codegen_mcp.server.hooks import ServerHooks
from codegen_mcp.server.revival import Revival
from codegen_mcp.server.status import failure_of, trailers

log = structlog.get_logger()

REQUEST_ID = "x-request-id"
CALL_REQUEST_ID: ContextVar[str] = ContextVar("call_request_id", default="")
"""Of the call under way; empty outside of one."""
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_STANDARD = "/grpc."
"""Health and reflection: answered whatever the load is."""

# Text: these classes are generic to type checkers only.
Context: TypeAlias = "aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Next: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]"


class EdgeInterceptor(aio.ServerInterceptor):
    """Wraps each handler once, whatever its arity; a call then pays a dictionary look-up."""

    def __init__(
        self,
        admission: Admission,
        hooks: ServerHooks,
        gate: CallerGate | None = None,
        revival: Revival | None = None,
    ) -> None:
        """Wire it.

        Args:
            admission: Counts calls and refuses too many.
            hooks: Told of each call.
            gate: Of a worker that serves a coordinator; None asks nothing.
            revival: Brings sessions back that are gone; None brings none.
        """
        self._gate = gate
        self._revival = revival
        self._admission = admission
        self._hooks = hooks
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(  # type: ignore[override]  # None: grpc answers UNIMPLEMENTED
        self, continuation: Next, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the wrapped handler of the method."""
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler: Handler | None = await continuation(handler_call_details)
        if handler is None:
            return None
        wrapped = handler if method.startswith(_STANDARD) else self._wrap(method, handler)
        self._wrapped[method] = wrapped
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        """Make the handler anew around its behaviour, of which one of four is set.

        A stream of answers is served as a single one before which the behaviour may write others
        (``write_part``): the last message then travels in one batch with the status, which
        saves both sides a turn of their loops. On the wire the two are the same (gRPC over HTTP2).
        """
        serializers = (handler.request_deserializer, handler.response_serializer)
        kinds: tuple[tuple[Callable[..., Any] | None, Callable[..., Handler]], ...] = (
            (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (handler.unary_stream, grpc.unary_unary_rpc_method_handler),
            (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
            (handler.stream_stream, grpc.stream_unary_rpc_method_handler),
        )
        for behaviour, make in kinds:
            if behaviour is not None:
                return make(self.behaviour(method, behaviour), *serializers)
        raise TypeError(f"{method} has no behaviour")

    def behaviour(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a handler: a coroutine function that returns the (last) message of the answer."""

        async def call(request: Any | AsyncIterator[Any], context: Context) -> Any:
            began = time.perf_counter()
            request_id = request_id_of(context)
            CALL_REQUEST_ID.set(request_id)
            bind_contextvars(request_id=request_id, **ids_in(request))
            code = "OK"
            entered = False
            try:
                self._admission.enter(method)
                entered = True
                if self._gate is not None:
                    self._gate.check(method, request, context.invocation_metadata() or ())
                context.set_trailing_metadata(((REQUEST_ID, request_id),))
                try:
                    return await behaviour(request, context)
                except NotFound as error:
                    revival = self._revival
                    if revival is None or not revival.wanted(method, error):
                        raise
                    if not await revival.restore(getattr(request, "session_id", "")):
                        raise
                    return await behaviour(request, context)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except aio.AbortError:
                code = "ABORT"
                raise
            except Exception as error:
                failure = failure_of(error)
                code = failure.code.name
                await context.abort(failure.code, failure.message, trailers(failure, request_id))
            finally:
                if entered:
                    self._admission.leave()
                seconds = time.perf_counter() - began
                self._hooks.call_finished(method=method, code=code, seconds=seconds)
                log.debug("rpc.finished", method=method, status=code, ms=round(seconds * 1e3, 2))

        return call


def request_id_of(context: Context) -> str:
    """Take the caller's ``x-request-id`` if it is sane, else make one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _SANE_REQUEST_ID.fullmatch(value):
            return value
    return "req_" + secrets.token_hex(8)


def bind_ids(message: object) -> None:
    """Put what it names into the log context; each call has a context of its own."""
    bind_contextvars(**ids_in(message))


def ids_in(message: object) -> dict[str, str]:
    """Return the session and the task that it names, for the log."""
    found: dict[str, str] = {}
    if session_id := getattr(message, "session_id", ""):
        found["session_id"] = session_id
    if task_id := getattr(message, "task_id", ""):
        found["task_id"] = task_id
    return found
