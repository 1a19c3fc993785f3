"""A tree of hostile content copied into another directory, name by name.

The walk goes by descriptor, in both trees at once, one open directory each: neither depth, nor
links, nor permissions stop it, and links are never followed. Kept are kinds, modes, times of
modification to the nanosecond, hard links, holes, ``user.*`` attributes (xattr(7)) and names of any
bytes. Nobody else may change either tree meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.volumes.file_copy import check_going, copy_range, data_ranges, share

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 512
"""Unit of st_blocks (inode(7))."""
_LINKS = b".links"
"""Beside the parts while they are copied: the first name of each file that has several."""


@dataclass(slots=True)
class Copied:
    """What a copy occupies."""

    bytes: int = 0
    """Allocated, links counted once."""
    shared_bytes: int = 0
    """Of those: blocks that are the source's, too, until one of them is written to."""


@dataclass(frozen=True, slots=True)
class _Level:
    found: os.stat_result
    """Of the directory in the source, before anything was changed there."""
    pending: list[bytes]


def copy_tree(
    source: Path,
    target: Path,
    parts: tuple[str, ...],
    owner: HostIdentity | None,
    stop: threading.Event,
) -> Copied:
    """Copy the directories ``parts`` of one directory into another one.

    Args:
        source: Holds the parts.
        target: Holds none of them yet. What a copy that failed has left is the caller's to remove.
        parts: Their names.
        owner: Owns everything of the copy; None is the caller's own user.
        stop: Set it to end this early.

    Raises:
        Stopped: ``stop`` was set.
        OSError: Something cannot be read or written.
        Corrupt: There is a device, which no session can have made.
    """
    with _Copier(source, target, owner, stop) as copier:
        for part in parts:
            copier.copy(os.fsencode(part))
        return copier.copied


class _Copier:
    def __init__(
        self, source: Path, target: Path, owner: HostIdentity | None, stop: threading.Event
    ) -> None:
        self._owner = (-1, -1) if owner is None else (owner.uid, owner.gid)
        self._stop = stop
        self._shares = True
        self._links: dict[tuple[int, int], int] = {}
        """Files with several names: how many of those have not been met yet."""
        self.copied = Copied()
        self._stack = ExitStack()
        self._source = self._open(source)
        self._target = self._open(target)
        self._kept = -1

    def __enter__(self) -> _Copier:
        with self._stack:
            os.mkdir(_LINKS, 0o700, dir_fd=self._target)
            self._kept = os.open(_LINKS, _DIRECTORY, dir_fd=self._target)
            self._stack.callback(os.close, self._kept)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                for device, inode in self._links:  # some of their names lie outside of the parts
                    os.unlink(_kept_name(device, inode), dir_fd=self._kept)
                os.rmdir(_LINKS, dir_fd=self._target)

    def copy(self, name: bytes) -> None:
        """Copy one directory and all below it."""
        source, target = os.dup(self._source), os.dup(self._target)
        levels: list[_Level] = []
        down: bytes | None = name
        try:
            while True:
                if down is not None:
                    found = os.stat(down, dir_fd=source, follow_symlinks=False)
                    source = _moved(source, _open_directory(down, source))
                    levels.append(_Level(found, []))
                    os.mkdir(down, 0o700, dir_fd=target)
                    target = _moved(target, os.open(down, _DIRECTORY, dir_fd=target))
                    levels[-1].pending.extend(self._copy_files(source, target))
                    self.copied.bytes += found.st_blocks * _BLOCK
                if levels[-1].pending:
                    down = levels[-1].pending.pop()
                    continue
                down = None
                # Before it is dressed: a mode may forbid even the way out.
                above = os.open(b"..", _DIRECTORY, dir_fd=target)
                self._dress(source, target, levels[-1].found)
                target = _moved(target, above)
                above = os.open(b"..", _DIRECTORY, dir_fd=source)
                _lock_again(source, levels.pop().found)
                source = _moved(source, above)
                if not levels:
                    return
                if _inode(os.fstat(source)) != _inode(levels[-1].found):
                    raise OSError(errno.EBUSY, "a directory was moved while it was copied")
        finally:
            _lock_all_again(source, levels)
            os.close(source)
            os.close(target)

    def _open(self, path: Path) -> int:
        descriptor = os.open(path, _DIRECTORY)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def _copy_files(self, source: int, target: int) -> list[bytes]:
        """Copy all but directories; return those."""
        below = []
        for name in os.listdir(source):
            raw = os.fsencode(name)
            check_going(self._stop)
            found = os.stat(raw, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                below.append(raw)
            elif found.st_nlink == 1:
                self._copy_one(raw, found, source, target)
            else:
                self._copy_linked(raw, found, source, target)
        return below

    def _copy_linked(self, name: bytes, found: os.stat_result, source: int, target: int) -> None:
        key = _inode(found)
        kept = _kept_name(*key)
        left = self._links.pop(key, 0)
        if not left:
            self._copy_one(name, found, source, target)
            os.link(name, kept, src_dir_fd=target, dst_dir_fd=self._kept, follow_symlinks=False)
            left = found.st_nlink
        elif left == 1:
            # Renamed, not linked: a file may have as many names as there can be.
            os.rename(kept, name, src_dir_fd=self._kept, dst_dir_fd=target)
        else:
            os.link(kept, name, src_dir_fd=self._kept, dst_dir_fd=target, follow_symlinks=False)
        if left > 1:
            self._links[key] = left - 1

    def _copy_one(self, name: bytes, found: os.stat_result, source: int, target: int) -> None:
        mode = found.st_mode
        self.copied.bytes += found.st_blocks * _BLOCK
        if stat.S_ISREG(mode):
            self._copy_file(name, found, source, target)
            return
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or _is_whiteout(found):
            os.mknod(name, stat.S_IFMT(mode) | 0o600, dir_fd=target)
        else:
            raise Corrupt(f"{name!r} is a device, which no session can have made")
        os.chown(name, *self._owner, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            os.chmod(name, stat.S_IMODE(mode), dir_fd=target)
        times = (found.st_atime_ns, found.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)

    def _copy_file(self, name: bytes, found: os.stat_result, source: int, target: int) -> None:
        descriptor = _open_file(name, source)
        try:
            made = os.open(name, _CREATE, 0o600, dir_fd=target)
            try:
                self._copy_bytes(descriptor, made, found)
                self._dress(descriptor, made, found)
            finally:
                os.close(made)
        finally:
            _lock_again(descriptor, found)
            os.close(descriptor)

    def _copy_bytes(self, source: int, target: int, found: os.stat_result) -> None:
        size, allocated = found.st_size, found.st_blocks * _BLOCK
        if size == 0:
            return
        if self._shares:
            self._shares = share(source, target)
            if self._shares:
                self.copied.shared_bytes += allocated
                return
        if allocated >= size:
            copy_range(source, target, 0, size, self._stop)
            return
        os.ftruncate(target, size)
        for start, end in data_ranges(source, size):
            copy_range(source, target, start, end, self._stop)

    def _dress(self, source: int, target: int, found: os.stat_result) -> None:
        """Give what was copied its attributes; the mode after the owner, which clears bits."""
        for name in os.listxattr(source):
            if name.startswith("user."):
                os.setxattr(target, name, os.getxattr(source, name))
        if self._owner[0] >= 0:
            os.fchown(target, *self._owner)
        os.fchmod(target, stat.S_IMODE(found.st_mode))
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _moved(old: int, new: int) -> int:
    os.close(old)
    return new


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _kept_name(device: int, inode: int) -> bytes:
    return b"%x-%x" % (device, inode)


def _is_whiteout(found: os.stat_result) -> bool:
    """Whether it is a character device 0:0, which anybody may make (mknod(2))."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _open_directory(name: bytes, parent: int) -> int:
    """Open one whatever its mode; an ordinary user's is made 0700 until it was copied."""
    try:
        below = os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        _unlock(name, parent, 0o700)
        return os.open(name, _DIRECTORY, dir_fd=parent)
    if not os.access(".", os.R_OK | os.X_OK, dir_fd=below):
        os.fchmod(below, 0o700)
    return below


def _open_file(name: bytes, parent: int) -> int:
    """Open one whatever its mode; an ordinary user's is made 0600 until it was copied."""
    try:
        return os.open(name, _READ, dir_fd=parent)
    except PermissionError:
        _unlock(name, parent, 0o600)
        return os.open(name, _READ, dir_fd=parent)


def _unlock(name: bytes, parent: int, mode: int) -> None:
    """Change a mode, following no link."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        # fchmod(2) takes no O_PATH descriptor; the path below /proc follows no further link.
        os.chmod(f"/proc/self/fd/{handle}", mode)
    finally:
        os.close(handle)


def _lock_again(descriptor: int, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        os.fchmod(descriptor, mode)


def _lock_all_again(source: int, levels: list[_Level]) -> None:
    """After a failure: give the open directories of the source, deepest first, their modes."""
    current = os.dup(source)
    try:
        with suppress(OSError):
            while levels:
                above = os.open(b"..", _DIRECTORY, dir_fd=current)
                _lock_again(current, levels.pop().found)
                current = _moved(current, above)
    finally:
        os.close(current)
