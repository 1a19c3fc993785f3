"""What code left in the workspace's directory ``artifacts/``, looked at without trusting it.

Nothing is followed: every directory and file is opened below the workspace's descriptor with
links and mount points refused (openat2(2), RESOLVE_NO_SYMLINKS and RESOLVE_NO_XDEV), and a file
is read only while it is the very one, unchanged, that was seen.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from codegen_mcp.core.errors import Conflict, WrongState
from codegen_mcp.core.paths import MAX_PATH_BYTES, show_path
from codegen_mcp.engine.workspace_errors import reporting
from codegen_mcp.engine.workspace_streams import OpenStreams, stream_open
from codegen_mcp.engine.workspace_threads import FileThreads, Stop
from codegen_mcp.engine.workspace_tree import LISTABLE, Tree, kind_of
from codegen_mcp.sandbox.openat2 import NO_LINKS, open_beneath

DIRECTORY = b"artifacts"
MAX_SCANNED = 10_000
"""Entries looked at after one task; whoever leaves more gets the first of them registered."""
MAX_SCANNED_BYTES = 4 * 1024 * 1024
"""Of their paths together."""
CHUNK_BYTES = 1024 * 1024

Mark = tuple[int, int, int, int]
"""inode, size, mtime_ns, ctime_ns: a file whose mark is equal was not changed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A file that was registered, or told to be left out."""

    mark: Mark
    sha256: str
    """Of what was registered; empty for one that was left out."""

    def touched(self, mark: Mark) -> bool:
        """Whether only the ctime differs: as by chown(2), when another worker adopts a session."""
        return mark[:3] == self.mark[:3]


@dataclass(frozen=True, slots=True)
class LeftFile:
    """One entry below ``artifacts/`` that is no directory."""

    path: bytes
    """From the workspace's root."""
    kind: str
    """``file``, or another kind, which is never read."""
    mark: Mark

    @property
    def size(self) -> int:
        """Bytes."""
        return self.mark[1]


@dataclass(frozen=True, slots=True)
class Scan:
    """What is there."""

    files: list[LeftFile]
    """By path."""
    whole: bool
    """Whether that is all of it."""


class LeftFiles:
    """The directory of one session; lives as long as its workspace."""

    def __init__(
        self, tree: Callable[[], Tree], threads: FileThreads, streams: OpenStreams
    ) -> None:
        """Share the workspace's parts; ``tree`` raises WrongState once it is closed."""
        self._tree = tree
        self._threads = threads
        self._streams = streams
        self.seen: dict[bytes, Seen] | None = None
        """By path; None before it was read from disk."""

    def present(self) -> bool:
        """Whether there is such a directory: one fstatat(2), done after every run of code."""
        try:
            found = os.stat(DIRECTORY, dir_fd=self._tree().fd, follow_symlinks=False)
        except (OSError, WrongState):
            return False
        return stat.S_ISDIR(found.st_mode)

    async def scan(self) -> Scan:
        """Look at all of it."""
        tree = self._tree()
        return await self._threads.run(lambda stop: _scan(tree, stop))

    async def read(self, file: LeftFile) -> AsyncIterator[bytes]:
        """Its bytes, all of them as they were when it was seen.

        Raises:
            Conflict: It is another file by now, or was changed while it was read.
        """
        with reporting(file.path):
            held = open_beneath(
                self._tree().fd, file.path, os.O_PATH | os.O_NOFOLLOW, resolve=NO_LINKS
            )
        try:
            _check(file, held)
            # The held inode itself, by now known to be a regular file: no FIFO, no device.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with reporting(file.path):
                fd = os.open(b"/proc/self/fd/%d" % held, flags)
            got = 0
            async with aclosing(
                stream_open(fd, file.path, CHUNK_BYTES, self._threads, self._streams)
            ) as chunks:
                async for chunk in chunks:
                    got += len(chunk)
                    if got > file.size:
                        break
                    yield chunk
            _check(file, held)
        finally:
            os.close(held)


def mark_of(found: os.stat_result) -> Mark:
    """Return what tells a changed file from an unchanged one."""
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _check(file: LeftFile, fd: int) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or mark_of(found) != file.mark:
        raise Conflict(f"{show_path(file.path)} was changed while it was read")


def _scan(tree: Tree, stop: Stop) -> Scan:
    files: list[LeftFile] = []
    pending, seen, size, whole = [DIRECTORY], 0, 0, True
    while pending:
        directory = pending.pop()
        try:
            fd = open_beneath(tree.fd, directory, LISTABLE, resolve=NO_LINKS)
        except OSError:  # removed or replaced since its name was read, or closed to us
            whole = False
            continue
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    stop.check()
                    seen += 1
                    path = directory + b"/" + os.fsencode(entry.name)
                    size += len(path)
                    full = seen > MAX_SCANNED or size > MAX_SCANNED_BYTES
                    if full or len(path) > MAX_PATH_BYTES:
                        whole = False
                        break
                    if os.fsencode(entry.name) not in tree.hidden:
                        _look(tree, fd, path, files, pending)
        finally:
            os.close(fd)
    return Scan(sorted(files, key=lambda file: file.path), whole)


def _look(
    tree: Tree, dir_fd: int, path: bytes, files: list[LeftFile], pending: list[bytes]
) -> None:
    try:
        found = os.stat(path.rpartition(b"/")[2], dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return
    kind = kind_of(found.st_mode)
    if kind == "directory":
        pending.append(path)
        return
    if kind == "file" and found.st_nlink > 1 and found.st_uid != tree.owner_uid:
        kind = "hard link to a file that is not the session's"
    files.append(LeftFile(path, kind, mark_of(found)))
