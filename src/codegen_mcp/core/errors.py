"""Every error the worker can answer with.

The tree::

    WorkerError                     INTERNAL
    ├── InvalidRequest              an argument is missing or malformed
    │   ├── FieldNotSupported       set, but not honoured here
    │   └── PathEscape              a path leaves the workspace
    ├── NotFound                    no such session, task, file, ...
    ├── AlreadyExists               an id used again with other content
    ├── WrongState                  the state does not allow it
    │   └── OutcomeUnknown          a task of which no record is left
    ├── Conflict                    a lost race
    ├── LimitExceeded               a quota of the session or a size limit
    ├── Full                        no room on the worker (carries retry_after_s)
    ├── Unauthenticated / Forbidden
    ├── UnknownTool / NotImplementedYet
    ├── Unavailable                 cannot be had now
    │   ├── SandboxUnavailable
    │   ├── StoreUnavailable
    │   └── Draining
    ├── Cancelled
    └── Corrupt                     stored state is damaged

A program that fails is a result (``core.task.Outcome``), never one of these.
Messages say what, the value in ``!r``, and what to do next.
"""

from __future__ import annotations


class WorkerError(Exception):
    """Root of the tree; on its own it means a fault of ours.

    Attributes:
        reason: Stable UPPER_SNAKE name that clients may match on.
        metadata: Small string facts sent along (ErrorInfo.metadata).
        retriable: Whether the same request may succeed later, unchanged.
        retry_after_s: A hint for when, in seconds; None where there is none.
    """

    reason: str = "INTERNAL"
    retriable: bool = False

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        retry_after_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason
        self.retry_after_s = retry_after_s
        self.metadata: dict[str, str] = metadata or {}

    @property
    def message(self) -> str:
        """The text for the caller."""
        return str(self.args[0])


class InvalidRequest(WorkerError):
    """An argument is missing or malformed."""

    reason = "INVALID_REQUEST"


class FieldNotSupported(InvalidRequest):
    """A field that this worker does not honour was set; refused by name, never ignored."""

    reason = "FIELD_NOT_SUPPORTED"


class PathEscape(InvalidRequest):
    """A path is absolute, leaves the workspace or crosses a link out of it."""

    reason = "PATH_ESCAPE"


class NotFound(WorkerError):
    """No such session, task, tool artifact or file."""

    reason = "NOT_FOUND"


class AlreadyExists(WorkerError):
    """An id was used again with other content."""

    reason = "ALREADY_EXISTS"


class WrongState(WorkerError):
    """The session or file is in a state that does not allow the request."""

    reason = "WRONG_STATE"


class OutcomeUnknown(WrongState):
    """A sequence number below the last one, and no record of its outcome is left."""

    reason = "OUTCOME_UNKNOWN"


class Conflict(WorkerError):
    """A race was lost; read again and retry."""

    reason = "CONFLICT"
    retriable = True


class LimitExceeded(WorkerError):
    """A quota of the session, or a stated size limit."""

    reason = "LIMIT_EXCEEDED"


class Full(WorkerError):
    """The worker has no room now: sessions, queue or disk."""

    reason = "FULL"
    retriable = True


class Unauthenticated(WorkerError):
    """No or a bad token."""

    reason = "UNAUTHENTICATED"


class Forbidden(WorkerError):
    """The caller may not do this."""

    reason = "FORBIDDEN"


class UnknownTool(WorkerError):
    """A tool that this worker does not have."""

    reason = "UNKNOWN_TOOL"


class NotImplementedYet(WorkerError):
    """A part of the interface that this version does not have."""

    reason = "NOT_IMPLEMENTED"


class Unavailable(WorkerError):
    """Something the request needs cannot be had now."""

    reason = "UNAVAILABLE"
    retriable = True


class SandboxUnavailable(Unavailable):
    """No sandbox could be started; says which wall is missing and how to get it."""

    reason = "SANDBOX_UNAVAILABLE"


class StoreUnavailable(Unavailable):
    """The object store or package index does not answer."""

    reason = "STORE_UNAVAILABLE"


class Draining(Unavailable):
    """The worker is shutting down and takes no new work."""

    reason = "DRAINING"


class Cancelled(WorkerError):
    """The caller cancelled before there was a result."""

    reason = "CANCELLED"


class Corrupt(WorkerError):
    """Stored state is damaged."""

    reason = "CORRUPT"
