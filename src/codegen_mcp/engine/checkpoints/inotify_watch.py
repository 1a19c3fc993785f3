"""Watching a session's trees through inotify: one watch on each directory."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection
from dataclasses import dataclass

from codegen_mcp.engine.checkpoints.inotify_reading import GONE_NAMES, NEW_NAMES, Blind, Reading
from codegen_mcp.engine.checkpoints.source_files import open_entry
from codegen_mcp.engine.checkpoints.tree_watch import Changes
from codegen_mcp.sandbox import inotify
from codegen_mcp.sandbox.openat2 import DIRECTORY

_CONTENT = inotify.MODIFY | inotify.ATTRIB | inotify.CLOSE_WRITE
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
_MISSED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_ROUNDS, _ROUND_S = 3, 0.001
"""How often, and after what time, the queue is read again for the event of a removal."""
MAX_PATH_BYTES = 8192
"""Directories nested deeper are left to a second walk."""
MAX_WATCHES = 100_000
"""Of one session: each holds an inode in memory (about 1 KiB)."""


@dataclass(slots=True)
class _Directory:
    """Where a watched directory is, as far as the events that were read tell."""

    parent: int
    """Watch of the directory above; -1 of a root."""
    name: bytes


class InotifyWatch:
    """Implements ``TreeWatch`` for any user, on any file system.

    A directory is watched before it is listed, so that what appears later is an event. One that
    came meanwhile is watched when its event is read; until then things happen in it unseen, which
    is why it is among ``trees``. What cannot be watched makes every further drain an overflow.

    No event names an inode: a write by a name that is gone (or was used again) may have changed
    another name of the file, so a write to a name that no later event removed and that is not
    there is an overflow. (A name that was used again meanwhile hides it: ``mapped_writers``.)

    Args:
        root_fd: The directory that holds the trees, open; a copy is kept.
        names: Of the trees.
    """

    name = "inotify"

    def __init__(self, root_fd: int, names: Collection[bytes]) -> None:
        self._root_fd = root_fd
        self._names = tuple(names)
        self._root = -1
        self._listener = -1
        self._directories: dict[int, _Directory] = {}
        self._blind = False

    def start(self) -> None:
        """Watch every directory; about 20 us each."""
        try:
            self._root = os.open(".", DIRECTORY | os.O_CLOEXEC, dir_fd=self._root_fd)
            self._listener = inotify.open_listener()
            for name in self._names:
                os.stat(name, dir_fd=self._root, follow_symlinks=False)
                self._watch_below(self._root, -1, name)
        except Blind:
            self._go_blind()
        except BaseException:
            self.close()
            raise

    def drain(self) -> Changes:
        """Read the queue in order, and watch what came."""
        if self._blind:
            return Changes(overflow=True)
        reading = Reading()
        try:
            for _ in range(_ROUNDS):
                for event in inotify.read_events(self._listener):
                    self._take(event, reading)
                if not reading.find_missing(self._look):
                    return reading.changes
                time.sleep(_ROUND_S)  # the event of a removal comes just after it
        except Blind:
            self._go_blind()
        return Changes(overflow=True)

    def close(self) -> None:
        """End all watches."""
        for fd in (self._listener, self._root):
            if fd >= 0:
                os.close(fd)
        self._listener = self._root = -1
        self._directories.clear()

    def _go_blind(self) -> None:
        self._blind = True
        self.close()

    def _take(self, event: inotify.Event, reading: Reading) -> None:
        mask = event.mask
        if mask & inotify.Q_OVERFLOW:
            raise Blind
        if mask & inotify.IGNORED:
            self._directories.pop(event.watch, None)
            return
        above = self._path(event.watch)
        if above is None:
            return
        reading.changes.paths.add(above)
        if not event.name:
            return
        path = above + b"/" + event.name
        reading.note(path, mask)
        if mask & inotify.ISDIR and mask & (NEW_NAMES | GONE_NAMES):
            reading.changes.trees.add(path)
            if mask & NEW_NAMES:
                self._arrived(event.watch, above, event.name)

    def _arrived(self, parent: int, above: bytes, name: bytes) -> None:
        """Watch a directory that came, if it is still there; else a later event tells where."""
        fd = _open(self._root, above)
        if fd is not None:
            try:
                self._watch_below(fd, parent, name)
            finally:
                os.close(fd)

    def _watch_below(self, dir_fd: int, parent: int, name: bytes) -> None:
        """Watch a directory and all below it; what is not there any more is told by an event.

        Raises:
            Blind: One cannot be watched or listed.
        """
        pending = [(name, self._watch_one(dir_fd, parent, name))]
        while pending:
            path, watched = pending.pop()
            if watched is None or not watched[1]:
                continue
            fd = _open(dir_fd, path)  # by path: a tree may be deeper than descriptors allow
            if fd is None:
                continue
            try:
                pending += [
                    (path + b"/" + below, self._watch_one(fd, watched[0], below))
                    for below in watched[1]
                ]
            finally:
                os.close(fd)

    def _watch_one(self, dir_fd: int, parent: int, name: bytes) -> tuple[int, list[bytes]] | None:
        """(watch, names of the directories in it); None when it is not there."""
        fd = _open(dir_fd, name)
        if fd is None:
            return None
        try:
            watch = inotify.add_watch(self._listener, fd, NEW_NAMES | GONE_NAMES | _CONTENT)
            self._directories[watch] = _Directory(parent, name)
            if len(self._directories) > MAX_WATCHES:
                raise Blind
            return watch, _directories_in(fd)
        except OSError as error:
            raise Blind from error
        finally:
            os.close(fd)

    def _path(self, watch: int) -> bytes | None:
        names: list[bytes] = []
        seen = set()
        while watch >= 0:
            directory = self._directories.get(watch)
            if directory is None or watch in seen:
                return None
            seen.add(watch)
            names.append(directory.name)
            watch = directory.parent
        return b"/".join(reversed(names))

    def _look(self, path: bytes) -> os.stat_result | None:
        above, _, name = path.rpartition(b"/")
        fd = _open(self._root, above)
        if fd is None:
            return None
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in _MISSED:
                return None
            raise Blind from error
        finally:
            os.close(fd)


def _open(dir_fd: int, path: bytes) -> int | None:
    """Open a directory; None when it is not there (any more).

    Raises:
        Blind: It cannot be opened.
    """
    if len(path) > MAX_PATH_BYTES:
        raise Blind
    try:
        return open_entry(dir_fd, path, DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _MISSED:
            return None
        raise Blind from error


def _directories_in(fd: int) -> list[bytes]:
    listed = os.open(".", _LIST, dir_fd=fd)
    try:
        with os.scandir(listed) as entries:
            return [os.fsencode(one.name) for one in entries if one.is_dir(follow_symlinks=False)]
    finally:
        os.close(listed)
