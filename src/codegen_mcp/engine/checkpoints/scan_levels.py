"""The directories on the way to where a walk is: opened by name, parked, and opened again.

A walk may be deeper than the descriptors of a process reach, and the tree may be changed by its
owner at any moment: what is opened again must be the same directory as before, else it is left.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from codegen_mcp.core.errors import LimitExceeded, WrongState
from codegen_mcp.core.paths import show_path
from codegen_mcp.engine.checkpoints.bounds import MAX_ENTRIES, check_entries

MAX_PATH_BYTES = 32 * 1024
"""Longest path that is walked. Far above PATH_MAX; bounds what a tree of nested names costs."""
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)
"""It was removed or replaced since its name was read."""

_LENT = 0o500
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(slots=True)
class Level:
    """A directory on the way from the root to where the walk is."""

    fd: int
    """-1 while it is parked."""
    name: bytes
    found: os.stat_result
    prefix: bytes
    """Its path with a slash."""
    names: Iterator[tuple[bytes, bool]]
    """(name, whether it is a directory) of what is still to be looked at, by name."""
    own_mode: int = -1
    """Its permission bits before it was lent others; -1 where it was not."""


class Listed:
    """Counts the names that one walk has in memory: those of all directories that it is in."""

    def __init__(self) -> None:
        self._count = 0

    def read(self, fd: int) -> list[tuple[bytes, bool]]:
        """Read an open directory: (name, whether it is a directory).

        Raises:
            LimitExceeded: There are more than a checkpoint may have.
        """
        with os.scandir(fd) as entries:
            names = [
                (os.fsencode(one.name), one.is_dir(follow_symlinks=False))
                for one in islice(entries, MAX_ENTRIES + 1 - self._count)
            ]
        self._count += len(names)
        check_entries(self._count)
        return names


def enter(parent: int, name: bytes, path: bytes, listed: Listed) -> Level | None:
    """Open a directory and list it; None when it is gone or no directory any more.

    Raises:
        LimitExceeded, WrongState, OSError: As ``scan``.
    """
    if len(path) > MAX_PATH_BYTES:
        raise LimitExceeded(
            f"directory {show_path(path)} is nested deeper than the {MAX_PATH_BYTES} bytes that a "
            "path may have in a checkpoint; delete it, or move it up"
        )
    fd, own_mode = _open_directory(parent, name, path)
    if fd < 0:
        return None
    try:
        found = os.fstat(fd)
        names = listed.read(fd)
    except BaseException:
        _give_back(fd, own_mode)
        os.close(fd)
        raise
    names.sort()
    return Level(fd, name, found, path + b"/", iter(names), own_mode)


def _open_directory(parent: int, name: bytes, path: bytes) -> tuple[int, int]:
    """(descriptor or -1, permission bits to give back or -1)."""
    try:
        fd = os.open(name, _OPEN, dir_fd=parent)
        if os.geteuid() == 0 or os.access(".", os.X_OK, dir_fd=fd, effective_ids=True):
            return fd, -1
        os.close(fd)
    except OSError as error:
        if error.errno in GONE:
            return -1, -1
        if error.errno != errno.EACCES:
            raise
    return _open_closed(parent, name, path)


def _open_closed(parent: int, name: bytes, path: bytes) -> tuple[int, int]:
    """Open a directory whose mode keeps its owner out: it is lent the bits while it is walked."""
    try:
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in GONE:
            return -1, -1
        raise _unreadable(path) from error
    try:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid():
            raise _unreadable(path)
        mode = stat.S_IMODE(found.st_mode)
        link = f"/proc/self/fd/{handle}"  # chmod through it follows no link of the session's
        os.chmod(link, mode | _LENT)
        try:
            return os.open(link, _OPEN & ~os.O_NOFOLLOW), mode
        except BaseException:
            os.chmod(link, mode)
            raise
    finally:
        os.close(handle)


def _unreadable(path: bytes) -> WrongState:
    return WrongState(
        f"directory {show_path(path)} cannot be read by the worker; give its owner read and search "
        "permission (chmod u+rx), or delete it, and try again",
        reason="UNREADABLE_DIRECTORY",
    )


def reopen(levels: list[Level], root_fd: int) -> bool:
    """Open the innermost directory again, from the root down; False when it is not there."""
    fd = os.dup(root_fd)
    try:
        for level in levels:
            below = os.open(level.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
            if not os.path.samestat(os.fstat(fd), level.found):
                return False
        levels[-1].fd = os.open(".", _OPEN, dir_fd=fd)
    except OSError as error:
        if error.errno in GONE:
            return False
        raise
    finally:
        os.close(fd)
    return True


def leave(levels: list[Level], root_fd: int) -> None:
    """Let the innermost directory go."""
    level = levels[-1]
    if level.own_mode >= 0 and level.fd < 0:
        reopen(levels, root_fd)
    levels.pop()
    above = levels[-1] if levels else None
    if above is not None and above.fd < 0 <= level.fd:
        _step_up(above, level.fd)
    close(level)


def _step_up(above: Level, fd: int) -> None:
    """Open a parked directory from the one below, unless that was moved elsewhere meanwhile."""
    try:
        parent = os.open("..", _OPEN, dir_fd=fd)
    except OSError:
        return  # opened from the root then
    if os.path.samestat(os.fstat(parent), above.found):
        above.fd = parent
    else:
        os.close(parent)


def park(level: Level) -> None:
    """Close a directory that the walk comes back to; bits that were lent to it stay."""
    if level.fd >= 0:
        os.close(level.fd)
        level.fd = -1


def close(level: Level) -> None:
    """Let a directory go for good."""
    if level.fd >= 0:
        _give_back(level.fd, level.own_mode)
    park(level)


def _give_back(fd: int, own_mode: int) -> None:
    """Undo the lending, unless the session itself has changed the mode meanwhile."""
    if own_mode >= 0 and stat.S_IMODE(os.fstat(fd).st_mode) == own_mode | _LENT:
        os.fchmod(fd, own_mode)
