"""Whether the worker of a state directory lives, and the name that its kernel objects carry.

A worker holds a flock on ``lock`` for as long as it lives; the kernel frees it with the process.
Ids, ages and heartbeats say nothing: they are reused, and stop while a machine sleeps.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from pathlib import Path

LOCK = "lock"
TOKEN = "token"
_TOKEN = re.compile(r"[0-9a-f]{16}")


def is_alive(state_directory: Path) -> bool:
    """Whether a worker holds the directory; False also where there is none."""
    try:
        descriptor = os.open(state_directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who only look do not take each other for a worker.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def worker_token(state_directory: Path) -> str:
    """Return the directory's token: random, made at the first start, the same at every later one.

    It names the control groups and marks the leased host users of whatever worker lives here, so
    that the next one recognises what was left. Call it while holding the lock.
    """
    path = state_directory / TOKEN
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = ""
    if not _TOKEN.fullmatch(token):
        token = secrets.token_hex(8)
        partial = path.with_suffix(".partial")
        descriptor = os.open(
            partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            os.write(descriptor, token.encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.rename(path)
    return token
