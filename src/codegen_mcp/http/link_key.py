"""The key that signs links: made at the first start, so that links outlive a restart."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from codegen_mcp.core.errors import Corrupt, Unavailable

KEY_BYTES = 32
"""As long as the digest of HMAC-SHA256: RFC 2104, section 3."""


def load_key(path: Path) -> bytes:
    """Read the key, or make it: mode 0600, whole or absent, durable. Blocks.

    Only one process at a time may do this for a path (the state directory's lock sees to it).

    Raises:
        Corrupt: The file is no key, or others may read it.
        Unavailable: It cannot be read or written.
    """
    try:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return _make(path)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise Unavailable(
            f"the key of artifact links {str(path)!r} cannot be used: {error.strerror}"
        ) from error
    private = not found.st_mode & 0o077 and found.st_uid == os.geteuid()
    if len(key) != KEY_BYTES or not stat.S_ISREG(found.st_mode) or not private:
        raise Corrupt(
            f"{str(path)!r} is not the key of this worker's artifact links ({KEY_BYTES} bytes, "
            "mode 0600); delete it for a new one, which ends all links given out so far"
        )
    return key


def _make(path: Path) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(fd)
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return key
