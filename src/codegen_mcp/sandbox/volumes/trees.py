"""Whole trees of hostile content: removed, or given to another owner.

The walk goes by descriptor, one open directory at a time, so that neither depth (paths far beyond
PATH_MAX), nor links, nor permissions stop it; links are never followed. shutil.rmtree recurses,
and needs a descriptor for each level. Nobody else may change the tree meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 3
_SET_ID = stat.S_ISUID | stat.S_ISGID
_SHARED_FROM = 16
"""Files in one directory from which on a second thread is worth being woken."""

Enter = Callable[[int], list[bytes]]
"""Takes an open directory, returns the names of the directories in it."""
Leave = Callable[[str | bytes, int], None]
"""Takes the name of a directory that is done, and its open parent."""


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
                _walk(parent, path.name, _unlink_files, _remove_directory)
                return
            except OSError as error:
                # readdir(3) may leave out entries of a directory that shrinks under it.
                if error.errno != errno.ENOTEMPTY or attempt == _ATTEMPTS - 1:
                    raise
    finally:
        os.close(parent)


def chown_tree(path: Path, uid: int, gid: int) -> None:
    """Give a directory and all below it to another owner. Blocks: call it in a thread.

    Modes stay as they are, set-id bits too. The directory itself goes last: as long as it has its
    old owner, the work is not done. A second thread takes half of the files: the kernel does most
    of the work, and outside of Python's lock.

    Raises:
        OSError: It is missing, or something cannot be changed.
    """
    above = os.open(path.parent, _OPEN)
    try:
        with _Giver(uid, gid) as giver:
            _walk(above, path.name, giver.give_files, giver.give_directory)
    finally:
        os.close(above)


class _Giver:
    """Changes owners, in the caller's thread and in one more."""

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid
        self._helper: ThreadPoolExecutor | None = None
        self._half: Future[None] | None = None

    def __enter__(self) -> _Giver:
        return self

    def __exit__(self, *_: object) -> None:
        if self._helper is not None:
            self._helper.shutdown()

    def give_files(self, directory: int) -> list[bytes]:
        """Change all but directories; return those."""
        below: list[bytes] = []
        files: list[bytes] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                is_directory = entry.is_dir(follow_symlinks=False)
                (below if is_directory else files).append(os.fsencode(entry.name))
        self._join()
        middle = len(files) // 2 if len(files) >= _SHARED_FROM else 0
        if middle:
            self._helper = self._helper or ThreadPoolExecutor(1, "chown")
            self._half = self._helper.submit(self._give_all, os.dup(directory), files[:middle])
        for name in files[middle:]:
            self._give(name, directory)
        return below

    def give_directory(self, name: str | bytes, parent: int) -> None:
        """Change it, after all that is in it."""
        self._join()
        self._give(name, parent)

    def _join(self) -> None:
        half, self._half = self._half, None
        if half is not None:
            half.result()

    def _give(self, name: str | bytes, parent: int) -> None:
        """Change one; chown(2) clears set-id bits of programs, which are put back."""
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        os.chown(name, self._uid, self._gid, dir_fd=parent, follow_symlinks=False)
        if mode & _SET_ID and not stat.S_ISLNK(mode):
            os.chmod(name, stat.S_IMODE(mode), dir_fd=parent)

    def _give_all(self, directory: int, names: list[bytes]) -> None:
        try:
            for name in names:
                self._give(name, directory)
        finally:
            os.close(directory)


def _remove_directory(name: str | bytes, parent: int) -> None:
    os.rmdir(name, dir_fd=parent)


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


def _walk(parent: int, name: str, enter: Enter, leave: Leave) -> None:
    """Call ``enter`` for each directory on the way down, ``leave`` on the way up, top last."""
    current = os.dup(parent)
    levels: list[_Level] = []
    down: str | bytes | None = name
    try:
        while True:
            if down is not None:
                below = _open_directory(down, current)
                os.close(current)
                current = below
                levels.append(_Level(down, _inode(current), enter(current)))
            if levels[-1].pending:
                down = levels[-1].pending.pop()
                continue
            down = None
            done = levels.pop()
            above = _open_directory("..", current) if levels else os.dup(parent)
            os.close(current)
            current = above
            if levels and _inode(current) != levels[-1].inode:
                raise OSError(f"the tree below {name!r} was changed while it was walked")
            leave(done.name, current)
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
