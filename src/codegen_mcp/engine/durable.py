"""Small files of ours: replaced in one step and never half, or with room reserved."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def write_file(path: Path, data: bytes, *, durable: bool) -> None:
    """Replace a file (mode 0600) by a rename; ``durable`` also waits for the disk.

    Only one writer at a time for each path. Without ``durable`` a power cut may lose the new
    content; a crash of the worker alone does not.

    Raises:
        OSError: As open(2), write(2), fsync(2) and rename(2).
    """
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(
        temporary,
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
    )
    try:
        _write(fd, data)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    temporary.replace(path)
    if durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_new_file(path: Path, data: bytes) -> None:
    """Fill a file (mode 0600) that nobody looks for yet; neither in one step nor durable.

    It is not there, or empty.

    Raises:
        OSError: As open(2) and write(2).
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _write(fd, data)
    finally:
        os.close(fd)


def reserve(fd: int, offset: int, length: int) -> bool:
    """Allocate a part of a file beyond its end, without changing its length (fallocate(2)).

    Returns whether it could be.
    """
    keep_size = 1
    start, size = ctypes.c_int64(offset), ctypes.c_int64(length)
    done: int = _libc.fallocate(fd, keep_size, start, size)
    return done == 0


def exchange(one: Path, other: Path) -> None:
    """Let two names change places in one step (renameat2(2), RENAME_EXCHANGE).

    Raises:
        OSError: EINVAL where the file system cannot; nothing was changed.
    """
    at_cwd, flag = -100, 2
    if _libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), flag) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one))


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
