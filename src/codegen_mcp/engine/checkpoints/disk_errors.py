"""What a failing disk means for a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from codegen_mcp.core.errors import Full, StoreUnavailable, Unavailable
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_maker import NO_SPACE, RETRY_AFTER_S


@contextmanager
def disk_errors() -> Iterator[None]:
    """Answer for OSError: a full disk is Full, anything else Unavailable; nothing was saved."""
    try:
        yield
    except StoreUnavailable as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_SPACE:
            raise Full(
                f"the disk of the object store is full: nothing was saved ({error.message}); free "
                "space there, or delete checkpoints",
                reason="DISK_FULL",
                retry_after_s=RETRY_AFTER_S,
            ) from error
        raise
    except OSError as error:
        if error.errno in NO_SPACE:
            raise Full(
                f"the disk of the worker is full ({error.strerror}): nothing was saved or "
                "restored; free space on the host",
                reason="DISK_FULL",
                retry_after_s=RETRY_AFTER_S,
            ) from error
        raise Unavailable(
            f"a file of the checkpoint or session cannot be used ({error.strerror}); nothing was "
            "saved or restored; try again",
            reason="CHECKPOINT_FAILED",
        ) from error


@contextmanager
def while_open(session: Session) -> Iterator[None]:
    """Answer that the session is gone where its files went while they were read."""
    try:
        yield
    except Unavailable:
        session.check_open()
        raise
