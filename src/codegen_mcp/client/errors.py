"""Errors of the SDK: by stable reason first, by gRPC status where there is none.

The tree::

    SandboxException
    ├── NotFoundException             no such session, task or file
    │   ├── SandboxNotFoundException
    │   └── CheckpointNotFoundException
    ├── InvalidArgumentException      a bad value; the message names it
    ├── NotEnoughSpaceException       a quota or size limit
    ├── RateLimitException            the worker has no room now; see ``retry_after_s``
    ├── TimeoutException              the call ran past its time
    ├── CancelledException
    ├── AuthenticationException       no, bad or insufficient rights
    ├── StateException                not in this state; already exists; lost race
    ├── NotImplementedException       not part of this worker
    ├── DataLossException             stored state is damaged
    ├── UnavailableException          try again: draining, restarting, not reachable
    ├── CommandExitException          a command ended other than by exit 0
    └── InternalException             a fault of the worker, with an id that its log has too
"""

from __future__ import annotations

from typing import TYPE_CHECKING

SHOWN_CHARACTERS = 400
"""Of a command's output in the error's message: its end, which says what went wrong."""

if TYPE_CHECKING:
    import grpc

    from codegen_mcp.client.results import CommandResult


class SandboxException(Exception):
    """Root of the SDK's errors.

    Attributes:
        reason: Stable name from the worker, for example ``PATH_ESCAPE``; empty if it sent none.
        retry_after_s: When to try again, in seconds; None where the worker gave no hint.
        metadata: Further facts from the worker.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        retry_after_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.metadata = metadata or {}


class NotFoundException(SandboxException):
    """No such task or file."""


class SandboxNotFoundException(NotFoundException):
    """The session has ended or never was."""


class CheckpointNotFoundException(NotFoundException):
    """The checkpoint was deleted or never was."""


class InvalidArgumentException(SandboxException):
    """A value is not accepted; the message names it and says what is."""


class NotEnoughSpaceException(SandboxException):
    """A quota or a size limit."""


class RateLimitException(SandboxException):
    """The worker has no room now."""


class TimeoutException(SandboxException):
    """The call ran past its time."""


class CancelledException(SandboxException):
    """The call was cancelled."""


class AuthenticationException(SandboxException):
    """The caller may not."""


class StateException(SandboxException):
    """The session's state does not allow it, or an id is taken."""


class NotImplementedException(SandboxException):
    """The worker has no such part."""


class DataLossException(SandboxException):
    """Stored state is damaged."""


class UnavailableException(SandboxException):
    """The worker cannot serve now."""


class InternalException(SandboxException):
    """A fault of the worker."""


class CommandExitException(SandboxException):
    """A command ended other than by exit 0; ``result`` has its output and how it ended."""

    def __init__(self, result: CommandResult) -> None:
        if result.ended_by == "exit":
            text = f"command ended with exit code {result.exit_code}"
            said = result.stderr.strip() or result.stdout.strip()
            text += f": {said[-SHOWN_CHARACTERS:]}" if said else " and printed nothing"
        else:
            text = f"command ended by {result.ended_by}: {result.error}"
        super().__init__(text)
        self.result = result

    @property
    def stdout(self) -> str:
        """What it printed."""
        return self.result.stdout

    @property
    def stderr(self) -> str:
        """What it printed as errors."""
        return self.result.stderr

    @property
    def exit_code(self) -> int:
        """Its exit code."""
        return self.result.exit_code


BY_REASON: dict[str, type[SandboxException]] = {
    "SESSION_NOT_FOUND": SandboxNotFoundException,
    "CHECKPOINT_NOT_FOUND": CheckpointNotFoundException,
    "LIMIT_EXCEEDED": NotEnoughSpaceException,
    "FULL": RateLimitException,
}
"""Reasons that say more than their status."""

BY_STATUS: dict[str, type[SandboxException]] = {
    "NOT_FOUND": NotFoundException,
    "INVALID_ARGUMENT": InvalidArgumentException,
    "OUT_OF_RANGE": InvalidArgumentException,
    "RESOURCE_EXHAUSTED": RateLimitException,
    "DEADLINE_EXCEEDED": TimeoutException,
    "CANCELLED": CancelledException,
    "UNAUTHENTICATED": AuthenticationException,
    "PERMISSION_DENIED": AuthenticationException,
    "FAILED_PRECONDITION": StateException,
    "ALREADY_EXISTS": StateException,
    "ABORTED": StateException,
    "UNIMPLEMENTED": NotImplementedException,
    "DATA_LOSS": DataLossException,
    "UNAVAILABLE": UnavailableException,
    "INTERNAL": InternalException,
    "UNKNOWN": InternalException,
}


def make_error(
    status: str,
    message: str,
    *,
    reason: str = "",
    retry_after_s: float | None = None,
    metadata: dict[str, str] | None = None,
) -> SandboxException:
    """Return the exception for a status name and reason; unknown ones give the root class."""
    kind = BY_REASON.get(reason) or BY_STATUS.get(status, SandboxException)
    return kind(message, reason=reason, retry_after_s=retry_after_s, metadata=metadata)


def from_rpc_error(error: grpc.aio.AioRpcError, address: str) -> SandboxException:
    """Map a failed call: its rich details give the reason and when to try again.

    A status without a reason comes from gRPC itself; of a worker that cannot be reached it says
    little, so the address and what to do are added.
    """
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    reason, metadata, retry = "", {}, None
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # aio errors have what it reads
    for detail in status.details if status is not None else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo()
            detail.Unpack(delay)
            retry = delay.retry_delay.seconds + delay.retry_delay.nanos / 1e9
    name = error.code().name
    message = error.details() or name
    if name == "UNAVAILABLE" and not reason:
        message = (
            f"no answer from a worker at {address!r}: {message}; start one with "
            "'codegen-mcp worker', or name another by address or CODEGEN_MCP_ADDRESS"
        )
    return make_error(name, message, reason=reason, retry_after_s=retry, metadata=metadata)
