"""Watching a session's own file system through fanotify: one mark, whatever is in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

from codegen_mcp.engine.checkpoints.tree_watch import MAX_CHANGES, MAX_CHANGES_BYTES, Changes
from codegen_mcp.sandbox import fanotify
from codegen_mcp.sandbox.fanotify import Event

_NAMES = fanotify.CREATE | fanotify.DELETE | fanotify.MOVED_FROM | fanotify.MOVED_TO
_CONTENT = fanotify.MODIFY | fanotify.ATTRIB | fanotify.CLOSE_WRITE
"""CLOSE_WRITE also tells of stores through a mapping, when its last user lets go."""


_ATTEMPTS = 50
"""A directory is said to be ENOMEM for a moment while it is removed, and then ESTALE."""


class _Unknown(Exception):
    """A path cannot be told."""


class FanotifyWatch:
    """Implements ``TreeWatch`` for root, on a file system of the session's own.

    Handles are resolved when they are drained: a directory that was moved is found where it is
    now, and its old and new names are among ``trees``; one that was removed is named by its
    parent's event.

    Args:
        root_fd: The directory that holds the trees, open; only used by ``start``.
        names: Of the trees.
    """

    name = "fanotify"

    def __init__(self, root_fd: int, names: Collection[bytes]) -> None:
        self._root_fd = root_fd
        self._names = frozenset(names)
        self._root = -1
        self._listener = -1

    def start(self) -> None:
        """Mark the file system."""
        try:
            self._root = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root_fd)
            if not _is_alone(self._root):
                raise OSError(errno.EXDEV, "the session shares its file system with others")
            self._listener = fanotify.open_listener()
            fanotify.watch_filesystem(
                self._listener, _NAMES | _CONTENT | fanotify.ONDIR, self._root
            )
            # Whether handles can be opened shows only here: it is another capability.
            os.close(fanotify.open_handle(self._root, fanotify.handle_of(self._root)))
        except BaseException:
            self.close()
            raise

    def drain(self) -> Changes:
        """Read the queue, then find out what its handles mean.

        Code may fill it as fast as it is read: beyond MAX_CHANGES events the watch is given up,
        and with it what the kernel has queued.
        """
        if self._listener < 0:
            return Changes(overflow=True)
        events: set[Event] = set()
        for count, event in enumerate(fanotify.read_events(self._listener)):
            if event.mask & fanotify.Q_OVERFLOW or count >= MAX_CHANGES:
                self.close()
                return Changes(overflow=True)
            events.add(event)
        try:
            return self._resolve(events)
        except _Unknown:
            return Changes(overflow=True)

    def close(self) -> None:
        """End the group."""
        for fd in (self._listener, self._root):
            if fd >= 0:
                os.close(fd)
        self._listener = self._root = -1

    def _resolve(self, events: Collection[Event]) -> Changes:
        changes = Changes()
        top = _path_of(self._root) + b"/"
        directories: dict[bytes, bytes | None] = {}
        files = set()
        size = 0
        for mask, handle, name, inode in events:
            if inode and not mask & fanotify.ONDIR:
                files.add(inode)
            if not handle:
                continue
            if handle not in directories:
                directories[handle] = self._path(handle, top)
            directory = directories[handle]
            if directory is None:
                continue
            changes.paths.add(directory)
            if name != b".":
                path = directory + b"/" + name
                size += len(path)
                if size > MAX_CHANGES_BYTES:
                    raise _Unknown
                changes.paths.add(path)
                if mask & fanotify.ONDIR and mask & _NAMES:
                    changes.trees.add(path)
        for handle in files:
            ino = self._inode(handle)
            if ino is not None:
                changes.inodes.add(ino)
        if _path_of(self._root) + b"/" != top:  # renamed: what was compared with it is void
            raise _Unknown
        return changes

    def _path(self, handle: bytes, top: bytes) -> bytes | None:
        """Path of a directory as the manifest has it; None when it is gone or not ours."""
        fd = self._open(handle)
        if fd < 0:
            return None
        try:
            if os.fstat(fd).st_nlink == 0:
                return None
            path = _path_of(fd)
        finally:
            os.close(fd)
        if not path.startswith(top):
            return None
        path = path[len(top) :]
        return path if path.partition(b"/")[0] in self._names else None

    def _inode(self, handle: bytes) -> int | None:
        fd = self._open(handle)
        if fd < 0:
            return None
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    def _open(self, handle: bytes) -> int:
        for _ in range(_ATTEMPTS):
            try:
                return fanotify.open_handle(self._root, handle)
            except OSError as error:
                if error.errno == errno.ESTALE:
                    return -1
                if error.errno != errno.ENOMEM:
                    raise
        raise _Unknown


def _is_alone(root: int) -> bool:
    """Whether a directory is where a file system is mounted, not one of many on it."""
    return os.fstat(root).st_dev != os.stat("..", dir_fd=root).st_dev


def _path_of(fd: int) -> bytes:
    try:
        return os.fsencode(os.readlink(f"/proc/self/fd/{fd}")).rstrip(b"/")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # the kernel has one page for it
            raise _Unknown from None
        raise
