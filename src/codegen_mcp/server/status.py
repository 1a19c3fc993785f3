"""Errors on the wire: the only table from error class to gRPC status, and the rich details.

An error is looked up along its MRO, so that a new subclass is as its parent. What is not in the
tree of ``core.errors`` is a fault of ours: INTERNAL, with a fixed text and an id under which the
log has the traceback.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from codegen_mcp.core import errors

log = structlog.get_logger()

DOMAIN = "codegen.v1"
"""ErrorInfo.domain of every error."""

MAX_TEXT_BYTES = 1024
"""Of a message. It travels twice, percent-encoded and base64, in trailers that many clients
limit to 8 KiB in all."""
MAX_TASK_TEXT_BYTES = 16 * 1024
"""Of a message in a TaskError, which is no trailer."""
MAX_FACT_BYTES = 256
MAX_FACTS = 8

STATUS: Mapping[type[BaseException], grpc.StatusCode] = {
    errors.WorkerError: grpc.StatusCode.INTERNAL,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnknownTool: grpc.StatusCode.UNIMPLEMENTED,
    errors.NotImplementedYet: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.Corrupt: grpc.StatusCode.DATA_LOSS,
}


_CODES = {code.value[0]: code for code in grpc.StatusCode}
_RETRIABLE = frozenset({grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as it may be told to a caller."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    retriable: bool = False
    retry_after_s: float | None = None
    error_id: str = ""
    """Only with INTERNAL: the id that the log has too."""


def code_of(error: BaseException) -> grpc.StatusCode:
    """Look the error up along its MRO."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return grpc.StatusCode.INTERNAL


def failure_of(error: Exception, *, text_bytes: int = MAX_TEXT_BYTES) -> Failure:
    """Say what may be told; a fault of ours is logged here, once, with its traceback."""
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL or not isinstance(error, errors.WorkerError):
        error_id = logged_id(error)
        return Failure(
            code=code,
            message=f"an internal error of the worker; its log has the cause as {error_id}",
            reason="INTERNAL",
            metadata={"error_id": error_id},
            error_id=error_id,
        )
    return Failure(
        code=code,
        message=cut(error.message, text_bytes),
        reason=error.reason,
        metadata={
            name: cut(value, MAX_FACT_BYTES)
            for name, value in list(error.metadata.items())[:MAX_FACTS]
        },
        retriable=error.retriable,
        retry_after_s=error.retry_after_s,
    )


def logged_id(error: Exception) -> str:
    """Return the id under which the log has the error; whoever logged it first named it."""
    if type(error) is errors.WorkerError and "error_id" in error.metadata:
        return error.metadata["error_id"]
    error_id = "err_" + secrets.token_hex(8)
    log.error("server.internal_error", error_id=error_id, exc_info=error)
    return error_id


def trailers(failure: Failure, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata: the rich status that ``grpc_status.rpc_status.from_call`` reads."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=failure.reason, domain=DOMAIN, metadata=dict(failure.metadata)
        ),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if failure.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(failure.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    rich = status_pb2.Status(
        code=failure.code.value[0], message=failure.message, details=map(packed, details)
    )
    return (
        ("x-request-id", request_id),
        ("grpc-status-details-bin", rich.SerializeToString()),
    )


def failure_from(status: status_pb2.Status) -> Failure:
    """Read back what ``trailers`` wrote."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return Failure(
        code=code,
        message=status.message,
        reason=info.reason,
        metadata=dict(info.metadata),
        retriable=code in _RETRIABLE or retry_after_s is not None,
        retry_after_s=retry_after_s,
        error_id=info.metadata.get("error_id", ""),
    )


def packed(message: Message) -> AnyMessage:
    """Put a message into an Any."""
    wrapped = AnyMessage()
    wrapped.Pack(message)
    return wrapped


def details_json(failure: Failure) -> str:
    """TaskError.details."""
    facts: dict[str, object] = {"reason": failure.reason, "metadata": dict(failure.metadata)}
    if failure.retry_after_s is not None:
        facts["retry_after_ms"] = int(failure.retry_after_s * 1000)
    if failure.error_id:
        facts["error_id"] = failure.error_id
    return json.dumps(facts)


def cut(text: str, limit: int) -> str:
    """Shorten to so many bytes of UTF-8, at a character's border; lone surrogates are escaped."""
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= limit:
        return raw.decode()
    return raw[: limit - 3].decode("utf-8", "ignore") + "…"
