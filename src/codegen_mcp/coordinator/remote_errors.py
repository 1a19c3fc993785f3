"""What a worker answered instead of a result, as errors of ``core.errors``.

A worker's own errors carry an ErrorInfo and are told on as they were. A status without one comes
from gRPC or from a foreign worker: UNAVAILABLE (and what gRPC makes of a torn connection) then
says that nobody knows whether the call arrived. See the gRPC documentation, ``statuscodes.md``.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode, aio

from codegen_mcp.core import errors

DETAILS = "grpc-status-details-bin"


class RemoteError:
    """Mixed into the errors that a worker answered with, as opposed to the coordinator's own."""


class RemoteInvalidRequest(RemoteError, errors.InvalidRequest):
    """INVALID_ARGUMENT."""


class RemoteNotFound(RemoteError, errors.NotFound):
    """NOT_FOUND."""


class RemoteAlreadyExists(RemoteError, errors.AlreadyExists):
    """ALREADY_EXISTS."""


class RemoteWrongState(RemoteError, errors.WrongState):
    """FAILED_PRECONDITION."""


class RemoteConflict(RemoteError, errors.Conflict):
    """ABORTED."""


class RemoteLimitExceeded(RemoteError, errors.LimitExceeded):
    """RESOURCE_EXHAUSTED that waiting does not cure."""


class RemoteFull(RemoteError, errors.Full):
    """RESOURCE_EXHAUSTED with a hint when to try again."""


class RemoteNotImplemented(RemoteError, errors.NotImplementedYet):
    """UNIMPLEMENTED."""


class RemoteUnavailable(RemoteError, errors.Unavailable):
    """UNAVAILABLE, said by the worker itself."""


class RemoteCancelled(RemoteError, errors.Cancelled):
    """CANCELLED, said by the worker itself."""


class RemoteCorrupt(RemoteError, errors.Corrupt):
    """DATA_LOSS."""


class LinkBroken(errors.Unavailable):
    """The connection failed under a call, and may come back.

    Attributes:
        sent: Whether the worker may have received the call.
    """

    reason = "LINK_BROKEN"

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message, retry_after_s=1.0)
        self.sent = sent


class LinkLost(LinkBroken):
    """The link is closed for good: its worker's start is dead, or has left."""

    reason = "LINK_LOST"


KINDS: Mapping[StatusCode, type[errors.WorkerError]] = {
    StatusCode.INVALID_ARGUMENT: RemoteInvalidRequest,
    StatusCode.OUT_OF_RANGE: RemoteInvalidRequest,
    StatusCode.NOT_FOUND: RemoteNotFound,
    StatusCode.ALREADY_EXISTS: RemoteAlreadyExists,
    StatusCode.FAILED_PRECONDITION: RemoteWrongState,
    StatusCode.ABORTED: RemoteConflict,
    StatusCode.UNIMPLEMENTED: RemoteNotImplemented,
    StatusCode.UNAVAILABLE: RemoteUnavailable,
    StatusCode.DEADLINE_EXCEEDED: RemoteUnavailable,
    StatusCode.CANCELLED: RemoteCancelled,
    StatusCode.DATA_LOSS: RemoteCorrupt,
}
_TORN = frozenset({StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.UNKNOWN})
"""What gRPC itself says of a connection that broke under a call, or of a server that ends."""
_REFUSED = frozenset({StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED})


def from_rpc_error(error: aio.AioRpcError, worker_id: str) -> errors.WorkerError:
    """Return the error of a failed call to a worker."""
    trailers = {str(key): value for key, value in error.trailing_metadata() or ()}
    raw = trailers.get(DETAILS, b"")
    rich = status_pb2.Status.FromString(raw if isinstance(raw, bytes) else raw.encode())
    if error.code() in _REFUSED:
        # Its dial token is another one now: it was started again. The caller has no part in that.
        return LinkBroken(f"worker {worker_id!r} refuses the coordinator's token", sent=False)
    return from_status(error.code(), error.details() or "", rich, worker_id)


def from_status(
    code: StatusCode, message: str, rich: status_pb2.Status, worker_id: str
) -> errors.WorkerError:
    """Return the error of a status and its details (empty where there are none)."""
    info, retry_after_s = _details(rich)
    if info is None and code in _TORN:
        return LinkBroken(f"the connection to worker {worker_id!r} broke ({message[:200]})")
    reason = info.reason if info is not None else None
    metadata = dict(info.metadata) if info is not None else {}
    if code is StatusCode.RESOURCE_EXHAUSTED:
        kind = RemoteLimitExceeded if retry_after_s is None else RemoteFull
        return kind(message, reason=reason, retry_after_s=retry_after_s, metadata=metadata)
    found = KINDS.get(code)
    if found is None:
        # An id that the worker's log has is told on; else the coordinator's log gets one.
        return errors.WorkerError(
            message or f"worker {worker_id!r} failed with {code.name}",
            metadata={name: metadata[name] for name in ("error_id",) if name in metadata},
        )
    return found(message, reason=reason, retry_after_s=retry_after_s, metadata=metadata)


def _details(
    rich: status_pb2.Status,
) -> tuple[error_details_pb2.ErrorInfo | None, float | None]:
    info: error_details_pb2.ErrorInfo | None = None
    retry_after_s: float | None = None
    for detail in rich.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return info, retry_after_s
