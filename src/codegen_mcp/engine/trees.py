"""Removing whole trees of hostile content.

The walk goes by descriptor, one open directory at a time, so that neither depth (paths far beyond
PATH_MAX), nor links, nor permissions stop it; links are never followed. shutil.rmtree recurses,
and needs a descriptor for each level. Nobody else may change the tree meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 3


@dataclass(slots=True)
class _Level:
    name: str | bytes
    inode: tuple[int, int]
    pending: list[bytes]


def remove_tree(path: Path) -> None:
    """Remove ``path`` and all below it; missing is fine. Blocks: call it in a thread.

    Raises:
        OSError: Something cannot be removed (a mount point, for example); the rest may be gone.
    """
    parent = os.open(path.parent, _OPEN)
    try:
        try:
            found = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(path.name, dir_fd=parent)
            return
        for attempt in range(_ATTEMPTS):
            try:
                _empty(parent, path.name)
                return
            except OSError as error:
                # readdir(3) may leave out entries of a directory that shrinks under it.
                if error.errno != errno.ENOTEMPTY or attempt == _ATTEMPTS - 1:
                    raise
    finally:
        os.close(parent)


def _unlink_files(directory: int) -> list[bytes]:
    """Unlink all but directories; return those."""
    below = []
    with os.scandir(directory) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                below.append(name)
            else:
                os.unlink(name, dir_fd=directory)
    return below


def _empty(parent: int, name: str) -> None:
    """Empty a directory and remove it, deepest first."""
    current = os.dup(parent)
    levels: list[_Level] = []
    down: str | bytes | None = name
    try:
        while True:
            if down is not None:
                below = _open_directory(down, current)
                os.close(current)
                current = below
                levels.append(_Level(down, _inode(current), _unlink_files(current)))
            if levels[-1].pending:
                down = levels[-1].pending.pop()
                continue
            down = None
            done = levels.pop()
            above = _open_directory("..", current) if levels else os.dup(parent)
            os.close(current)
            current = above
            if levels and _inode(current) != levels[-1].inode:
                raise OSError(f"the tree below {name!r} was changed while it was removed")
            os.rmdir(done.name, dir_fd=current)
            if not levels:
                return
    finally:
        os.close(current)


def _inode(directory: int) -> tuple[int, int]:
    found = os.fstat(directory)
    return found.st_dev, found.st_ino


def _open_directory(name: str | bytes, parent: int) -> int:
    """Open a directory whatever its mode (which is made 0700 when it stands in the way)."""
    try:
        below = os.open(name, _OPEN, dir_fd=parent)
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=below):
            os.fchmod(below, 0o700)
        return below
    except PermissionError:
        # O_PATH needs no permission on the directory itself; chmod through /proc follows no link.
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
        finally:
            os.close(handle)
        return os.open(name, _OPEN, dir_fd=parent)
