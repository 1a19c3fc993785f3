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
from collections.abc import Collection, Generator
from typing import NamedTuple

from codegen_mcp.core.checkpoint import EntryKind
from codegen_mcp.engine.checkpoints.scan_levels import (
    GONE,
    MAX_PATH_BYTES,
    Level,
    Listed,
    close,
    enter,
    leave,
    park,
    reopen,
)

OPEN_LEVELS = 64
"""Directories that one walk keeps open; those further up are opened again on the way back."""
__all__ = ["MAX_PATH_BYTES", "OPEN_LEVELS", "FirstNames", "Seen", "scan"]

_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFIFO: EntryKind.FIFO,
}

FirstNames = dict[tuple[int, int], bytes]
"""(device, inode) to the first path that was seen of it."""


class Place:
    """Where a walk is: the directory of the name that it has just given, open until the next."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        """Be nowhere."""
        self.fd = -1


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


def scan(
    root_fd: int,
    name: bytes,
    *,
    skip: Collection[bytes] = (),
    first_names: FirstNames | None = None,
    place: Place | None = None,
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
        place: Tells the directory of each name that is no directory itself.

    Raises:
        WrongState: A directory that this process may not read and does not own.
        LimitExceeded: A path is longer than ``MAX_PATH_BYTES``, or there are too many names.
        OSError: The file system fails (EIO, EMFILE, ...).
    """
    known: FirstNames = {} if first_names is None else first_names
    levels: list[Level] = []
    listed = Listed()
    place = Place() if place is None else place
    try:
        root = enter(root_fd, b".", name, listed)
        if root is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        levels.append(root)
        yield _seen_directory(root)
        while levels:
            level = levels[-1]
            if level.fd < 0 and not reopen(levels, root_fd):
                leave(levels, root_fd)
                continue
            place.fd = level.fd
            below = yield from _names(level, root.found.st_dev, skip, known, listed)
            if below is None:
                leave(levels, root_fd)
                continue
            levels.append(below)
            if len(levels) > OPEN_LEVELS + 1:
                park(levels[-1 - OPEN_LEVELS])
            yield _seen_directory(below)
    finally:
        while levels:
            leave(levels, root_fd)


def _names(
    level: Level, device: int, skip: Collection[bytes], known: FirstNames, listed: Listed
) -> Generator[Seen, None, Level | None]:
    """Yield what is left of a directory up to the next directory in it, which is returned open."""
    fd, prefix, stat_at, kinds = level.fd, level.prefix, os.stat, _KINDS.get
    for name, is_directory in level.names:
        path = prefix + name
        if skip and (name in skip or path in skip):
            continue
        if is_directory and (below := enter(fd, name, path, listed)) is not None:
            if below.found.st_dev == device:
                return below
            close(below)
            yield _seen_directory(below)._replace(kind=None)
            continue
        try:
            found = stat_at(name, dir_fd=fd, follow_symlinks=False)
            mode = found.st_mode
            kind = kinds(mode & 0o170000)
            target = os.readlink(name, dir_fd=fd) if kind is EntryKind.SYMLINK else b""
        except OSError as error:
            if error.errno in (*GONE, errno.EINVAL):  # EINVAL: no link any more
                continue
            raise
        if kind is EntryKind.DIRECTORY:  # since its name was read
            if (below := enter(fd, name, path, listed)) is not None:
                return below
            continue
        if kind is EntryKind.FILE and found.st_nlink > 1:
            first = known.setdefault((found.st_dev, found.st_ino), path)
            if first != path:
                kind, target = EntryKind.HARDLINK, first
        yield _seen(path, kind, found, target)
    return None


def _seen_directory(level: Level) -> Seen:
    seen = _seen(level.prefix[:-1], EntryKind.DIRECTORY, level.found, b"")
    return seen if level.own_mode < 0 else seen._replace(mode=level.own_mode)


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
