"""What every directory refuses, in the same words."""

from __future__ import annotations

from codegen_mcp.coordinator.directory.base import Owner, RowState, SessionRow
from codegen_mcp.core.errors import AlreadyExists, Conflict, Full, InvalidRequest

RETRY_S = 10.0
"""A guess: a session ends when its principal ends it, or after it was idle for long."""


def check_new(row: SessionRow) -> None:
    """Raise InvalidRequest unless the row is one of a session that begins."""
    if (
        not row.session_id
        or row.owner is None
        or row.epoch != 1
        or row.state not in (RowState.CREATING, RowState.LIVE)
    ):
        raise InvalidRequest(
            f"session {row.session_id!r} cannot begin with owner {row.owner}, epoch {row.epoch} "
            f"and state {row.state.value!r}; give an id, an owner, epoch 1, and creating or live"
        )


def exists_already(row: SessionRow) -> AlreadyExists:
    """Of an id that was used before."""
    return AlreadyExists(f"there is a session {row.session_id!r} already; make a new id")


def no_more_sessions(row: SessionRow, max_sessions: int) -> Full:
    """Of a principal that has all it may have."""
    return Full(
        f"{row.principal!r} has {max_sessions} sessions, all that it may have; end one first",
        reason="QUOTA_EXCEEDED",
        retry_after_s=RETRY_S,
        metadata={"quota": "sessions", "limit": str(max_sessions)},
    )


def has_beaten(owner: Owner) -> Conflict:
    """Of a start that gave a sign of life just before it was declared dead."""
    return Conflict(
        f"worker {owner.worker_id!r}, incarnation {owner.incarnation}, is alive; listen on"
    )
