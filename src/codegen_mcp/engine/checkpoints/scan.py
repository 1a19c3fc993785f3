"""Walks a session's tree while its code may change it: every name, in a stable order.

Directories are opened one below the other with links refused, so that neither swapped names nor
depth lead out of the tree. Names that vanish or change kind on the way are taken as they are when
they are reached; only what is seen between two looks at the same directory is coherent, the rest
is for a watch or a second walk to find. Sources: openat(2), inode(7), link(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from codegen_mcp.core.checkpoint import EntryKind
from codegen_mcp.core.errors import LimitExceeded, WrongState
from codegen_mcp.core.paths import show_path

MAX_PATH_BYTES = 32 * 1024
"""Longest path that is walked. Far above PATH_MAX; bounds what a tree of nested names costs."""
OPEN_LEVELS = 64
"""Directories that one walk keeps open; those further up are opened again on the way back."""

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)
"""It was removed or replaced since its name was read."""
_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFIFO: EntryKind.FIFO,
}

FirstNames = dict[tuple[int, int], bytes]
"""(device, inode) to the first path that was seen of it."""


class Seen(NamedTuple):
    """One name as the walk found it."""

    path: bytes
    """Begins with the name of the tree, for example ``workspace/a``."""
    kind: EntryKind | None
    """None for what is never saved: sockets, devices, and directories of other file systems."""
    mode: int
    """Permission bits, 0 to 0o7777."""
    mtime_ns: int
    ctime_ns: int
    size: int
    """Bytes as stat(2) has them, of any kind."""
    ino: int
    nlink: int
    blocks: int
    """Units of 512 bytes that are allocated."""
    target: bytes
    """Text of a symbolic link, path of a hard link's first name; else empty."""


@dataclass(slots=True)
class _Level:
    """A directory on the way from the root to where the walk is."""

    fd: int
    """-1 while it is closed."""
    name: bytes
    inode: tuple[int, int]
    prefix: bytes
    """Its path with a slash."""
    names: Iterator[tuple[bytes, bool]]
    """(name, whether it is a directory) of what is still to be looked at."""
    chmod: int = -1
    """Its own permission bits, which are given back; -1 where they were not touched."""


def scan(
    root_fd: int,
    name: bytes,
    *,
    skip: Collection[bytes] = (),
    first_names: FirstNames | None = None,
) -> Generator[Seen, None, None]:
    """Yield every name of a tree, its root first.

    A directory comes before what is in it and is followed by all of that; the names of one
    directory come in the order of their bytes. The second name of a regular file is a HARDLINK to
    the first. Blocks: for a thread. Close the generator when it is not read to its end.

    Args:
        root_fd: The tree's own directory, open; stays the caller's. O_PATH is enough.
        name: What all paths begin with: ``workspace``, ``venv``, or a path below these.
        skip: Names without a slash are left out wherever they are, paths (that begin with
            ``name``) at their place, directories with all below. Looked up at each name, so that
            a set that its owner changes meanwhile is fine.
        first_names: Shared between walks of several roots, finds hard links across them.

    Raises:
        WrongState: A directory that this process may not read and does not own.
        LimitExceeded: A path is longer than ``MAX_PATH_BYTES``.
        OSError: The file system fails (EIO, EMFILE, ...).
    """
    known: FirstNames = {} if first_names is None else first_names
    levels: list[_Level] = []
    try:
        root = _enter(root_fd, b".", name)
        if root is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        levels.append(root[0])
        yield root[1]
        device = root[0].inode[0]
        while levels:
            level = levels[-1]
            if level.fd < 0 and not _reopen(levels, root_fd):
                _leave(levels, root_fd)
                continue
            below = yield from _names(level, device, skip, known)
            if below is None:
                _leave(levels, root_fd)
                continue
            levels.append(below)
            if len(levels) > OPEN_LEVELS + 1:
                _park(levels[-1 - OPEN_LEVELS])
    finally:
        while levels:
            _leave(levels, root_fd)


def _names(
    level: _Level, device: int, skip: Collection[bytes], known: FirstNames
) -> Generator[Seen, None, _Level | None]:
    """Yield what is left of a directory up to the next directory in it, which is returned."""
    fd, prefix = level.fd, level.prefix
    for name, is_directory in level.names:
        path = prefix + name
        if skip and (name in skip or path in skip):
            continue
        if is_directory:
            entered = _enter(fd, name, path)
            if entered is not None:
                below, seen = entered
                if below.inode[0] == device:
                    yield seen
                    return below
                _close(below)
                yield seen._replace(kind=None)
                continue
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            mode = found.st_mode
            kind = _KINDS.get(stat.S_IFMT(mode))
            target = os.readlink(name, dir_fd=fd) if kind is EntryKind.SYMLINK else b""
        except OSError as error:
            if error.errno in (*_GONE, errno.EINVAL):  # EINVAL: no link any more
                continue
            raise
        if kind is EntryKind.DIRECTORY:  # since its name was read
            entered = _enter(fd, name, path)
            if entered is None or entered[0].inode[0] != device:
                continue
            yield entered[1]
            return entered[0]
        if kind is EntryKind.FILE and found.st_nlink > 1:
            first = known.setdefault((found.st_dev, found.st_ino), path)
            if first != path:
                kind, target = EntryKind.HARDLINK, first
        yield _seen(path, kind, found, target)
    return None


def _enter(parent: int, name: bytes, path: bytes) -> tuple[_Level, Seen] | None:
    """Open a directory and list it; None when it is gone or no directory any more."""
    if len(path) > MAX_PATH_BYTES:
        raise LimitExceeded(
            f"directory {show_path(path)} is nested deeper than the {MAX_PATH_BYTES} bytes that a "
            "path may have in a checkpoint; delete it, or move it up"
        )
    fd, chmod = _open_directory(parent, name, path)
    if fd < 0:
        return None
    try:
        found = os.fstat(fd)
        with os.scandir(fd) as entries:
            names = [(os.fsencode(one.name), one.is_dir(follow_symlinks=False)) for one in entries]
    except BaseException:
        _restore(fd, chmod)
        os.close(fd)
        raise
    names.sort()
    inode = found.st_dev, found.st_ino
    seen = _seen(path, EntryKind.DIRECTORY, found, b"")
    if chmod >= 0:
        seen = seen._replace(mode=chmod)
    return _Level(fd, name, inode, path + b"/", iter(names), chmod), seen


def _open_directory(parent: int, name: bytes, path: bytes) -> tuple[int, int]:
    """(descriptor or -1, permission bits to give back or -1)."""
    try:
        fd = os.open(name, _OPEN, dir_fd=parent)
        if os.geteuid() == 0 or os.access(".", os.X_OK, dir_fd=fd, effective_ids=True):
            return fd, -1
        os.close(fd)
    except OSError as error:
        if error.errno in _GONE:
            return -1, -1
        if error.errno != errno.EACCES:
            raise
    return _open_closed(parent, name, path)


def _open_closed(parent: int, name: bytes, path: bytes) -> tuple[int, int]:
    """Open a directory whose mode keeps its owner out: it is lent the bits while it is walked."""
    try:
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in _GONE:
            return -1, -1
        raise _unreadable(path) from error
    try:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid():
            raise _unreadable(path)
        mode = stat.S_IMODE(found.st_mode)
        link = f"/proc/self/fd/{handle}"  # chmod through it follows no link of the session's
        os.chmod(link, mode | 0o500)
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


def _seen(path: bytes, kind: EntryKind | None, found: os.stat_result, target: bytes) -> Seen:
    return Seen(
        path,
        kind,
        found.st_mode & 0o7777,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_size,
        found.st_ino,
        found.st_nlink,
        found.st_blocks,
        target,
    )


def _reopen(levels: list[_Level], root_fd: int) -> bool:
    """Open the innermost directory again, from the root down; False when it is not there."""
    fd = os.dup(root_fd)
    try:
        for level in levels:
            below = os.open(level.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != level.inode:
                return False
        levels[-1].fd = os.open(".", _OPEN, dir_fd=fd)
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
    finally:
        os.close(fd)
    return True


def _leave(levels: list[_Level], root_fd: int) -> None:
    """Let the innermost directory go."""
    level = levels[-1]
    if level.chmod >= 0 and level.fd < 0:
        _reopen(levels, root_fd)
    levels.pop()
    above = levels[-1] if levels else None
    if above is not None and above.fd < 0 <= level.fd:
        _step_up(above, level.fd)
    _close(level)


def _step_up(above: _Level, fd: int) -> None:
    """Open a parked directory from the one below, unless that was moved elsewhere meanwhile."""
    try:
        parent = os.open("..", _OPEN, dir_fd=fd)
    except OSError:
        return  # opened from the root then
    found = os.fstat(parent)
    if (found.st_dev, found.st_ino) == above.inode:
        above.fd = parent
    else:
        os.close(parent)


def _park(level: _Level) -> None:
    """Close a directory that the walk comes back to; bits that were lent to it stay."""
    if level.fd >= 0:
        os.close(level.fd)
        level.fd = -1


def _close(level: _Level) -> None:
    if level.fd >= 0:
        _restore(level.fd, level.chmod)
    _park(level)


def _restore(fd: int, chmod: int) -> None:
    if chmod >= 0:
        os.fchmod(fd, chmod)
