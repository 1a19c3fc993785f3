"""Identifiers: unguessable where we make them, bounded where callers do."""

from __future__ import annotations

import re
import secrets
from typing import NewType

from codegen_mcp.core.errors import InvalidRequest

SessionId = NewType("SessionId", str)
TaskId = NewType("TaskId", str)

MAX_ID_LENGTH = 256
_SESSION_ID = re.compile(r"ses_[0-9a-f]{32}")
_TASK_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,256}")


def new_session_id() -> SessionId:
    """Return a fresh session id with 128 random bits (it is a handle, and must not be guessed)."""
    return SessionId("ses_" + secrets.token_hex(16))


def check_session_id(value: str) -> SessionId:
    """Accept the id that a coordinator chose for a session.

    Raises:
        InvalidRequest: It is not ``ses_`` and 32 lower-case hexadecimal digits.
    """
    if not _SESSION_ID.fullmatch(value):
        raise InvalidRequest(
            f"session id {value[:80]!r} is not valid; use ses_ and 32 lower-case hexadecimal "
            "digits of good randomness, or leave it empty"
        )
    return SessionId(value)


def new_task_id() -> TaskId:
    """Return a fresh task id for a caller that sent none."""
    return TaskId("task_" + secrets.token_hex(16))


def check_task_id(value: str) -> TaskId:
    """Accept a caller's task id.

    Raises:
        InvalidRequest: It is empty, too long, or has other characters than the message names.
    """
    if not _TASK_ID.fullmatch(value):
        raise InvalidRequest(
            f"task_id {value[:80]!r} is not valid; use 1 to {MAX_ID_LENGTH} characters of "
            "A-Z a-z 0-9 . _ : @ / + = -"
        )
    return TaskId(value)
