"""What the gateway says of its own: one text for each thing, whoever asks, whatever was there."""

from __future__ import annotations

from codegen_mcp.coordinator.remote_errors import LinkBroken
from codegen_mcp.core.errors import Conflict, NotFound, Unavailable, WorkerError, WrongState

OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
SESSION_LOST = "SESSION_LOST"
RETRY_S = 2.0


def no_session(session_id: str) -> NotFound:
    """Return the answer for a session that never was, that is gone, and that is another's."""
    return NotFound(
        f"there is no session {session_id[:80]!r}; create one, or list those that there are",
        reason="SESSION_NOT_FOUND",
    )


def no_task(task_id: str) -> NotFound:
    """Return the answer for a task of which the caller has no record."""
    return NotFound(
        f"there is no task {task_id[:80]!r}; name its session, or list those of a session",
        reason="TASK_NOT_FOUND",
    )


def session_lost(session_id: str) -> NotFound:
    """Return what is said once of a session that went with its worker."""
    return NotFound(
        f"session {session_id!r} is gone: its worker was lost and it had no checkpoint; create "
        "another one (with a checkpoint interval, auto_restore or durability it would come back)",
        reason=SESSION_LOST,
        metadata={"session_id": session_id, "ended_by": "WORKER_LOST"},
    )


def worker_away(session_id: str, waited_s: float) -> Unavailable:
    """Return the answer where the worker of a session does not answer, and is not lost yet."""
    return Unavailable(
        f"the worker of session {session_id!r} cannot be reached, and was waited for "
        f"{waited_s:.0f} s; try again: it comes back, or the session is restored elsewhere",
        reason="WORKER_AWAY",
        retry_after_s=RETRY_S,
        metadata={"session_id": session_id},
    )


def outcome_unknown(what: str, session_id: str, why: WorkerError | None = None) -> Unavailable:
    """Return the answer where something may have had its effect, and nobody can tell.

    ``why`` is what is known of the session since.
    """
    since = f" ({why.message})" if why is not None else ""
    error = Unavailable(
        f"the worker was lost during {what} of session {session_id!r}, which may have had its "
        f"effect or not; look at the session before you repeat it{since}",
        reason=OUTCOME_UNKNOWN,
        metadata={"session_id": session_id, "ended_by": "WORKER_LOST"},
    )
    error.retriable = False
    return error


def no_upload(artifact_id: str) -> NotFound:
    """Return the answer for an upload that is not announced, or not the caller's."""
    return NotFound(
        f"no upload of an artifact {artifact_id[:80]!r} is announced; ask for a link with "
        "GetUploadURL and send it again",
        reason="ARTIFACT_NOT_FOUND",
    )


def upload_away(artifact_id: str) -> Unavailable:
    """Return the answer where the worker that took an upload is not here."""
    return Unavailable(
        f"the worker that has the upload {artifact_id[:80]!r} cannot be reached; try again, or "
        "upload it anew",
        reason="WORKER_AWAY",
        retry_after_s=RETRY_S,
    )


def ended_early(worker_id: str) -> LinkBroken:
    """Return what a stream without its last message is."""
    return LinkBroken(f"a stream of worker {worker_id!r} ended before the task")


def store_away(session_id: str) -> Unavailable:
    """Return the answer where no worker that is here can read a session's checkpoints."""
    return Unavailable(
        f"no worker that can read the checkpoints of session {session_id!r} is here; try again",
        reason="WORKER_AWAY",
        retry_after_s=RETRY_S,
        metadata={"session_id": session_id},
    )


def held_elsewhere(session_id: str, worker_id: str) -> WrongState:
    """Return the answer to a restore in place on a worker that does not have the session."""
    return WrongState(
        f"session {session_id!r} is on worker {worker_id!r}; leave worker_id empty, or set "
        "create_new_session to restore into another one",
        reason="WRONG_WORKER",
        metadata={"worker_id": worker_id},
    )


def session_ended(session_id: str) -> WrongState:
    """Return the answer to a restore in place of a session that is over."""
    return WrongState(
        f"session {session_id!r} has ended; set create_new_session to restore its checkpoint into "
        "a new one",
        reason="SESSION_ENDED",
        metadata={"session_id": session_id},
    )


def fenced(session_id: str) -> Conflict:
    """Return the answer where a worker did something for a session that it no longer holds."""
    return Conflict(
        f"session {session_id!r} was taken over by another worker meanwhile; what was done does "
        "not count, repeat it",
        reason="STALE_EPOCH",
        metadata={"session_id": session_id},
    )


def is_gone(error: WorkerError) -> bool:
    """Whether a worker said that it does not have the session."""
    return isinstance(error, NotFound) and error.reason == "SESSION_NOT_FOUND"


def is_stale(error: WorkerError) -> bool:
    """Whether a worker said that it does not hold the session under this epoch."""
    return isinstance(error, Conflict) and error.reason == "STALE_EPOCH"


def is_broken(error: WorkerError) -> bool:
    """Whether the link failed under a call, rather than the worker refusing it."""
    return isinstance(error, Unavailable) and error.reason in {"LINK_LOST", "LINK_BROKEN"}


def was_sent(error: WorkerError) -> bool:
    """Whether the worker may have received the call under which the link failed."""
    return bool(getattr(error, "sent", True))


def is_draining(error: WorkerError) -> bool:
    """Whether a worker refused new work because it shuts down."""
    return isinstance(error, Unavailable) and error.reason == "DRAINING"
