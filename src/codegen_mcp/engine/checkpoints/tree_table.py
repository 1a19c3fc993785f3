"""The names of a session's tree as last seen, by path; hard links grouped by inode."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Generator, Iterator

from codegen_mcp.core.checkpoint import EntryKind
from codegen_mcp.engine.checkpoints import bounds
from codegen_mcp.engine.checkpoints.bounds import check_entries, check_names_bytes
from codegen_mcp.engine.checkpoints.scan import FirstNames, Place, Seen, scan
from codegen_mcp.engine.checkpoints.source_files import open_entry

MAX_STEPS = 20_000_000
"""About a second. Code can put thousands of directories in the place of others."""
_FILES = (EntryKind.FILE, EntryKind.HARDLINK)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFIFO: EntryKind.FIFO,
}


def order(path: bytes) -> bytes:
    """Sort key: a directory directly before what is in it."""
    return path.replace(b"/", b"\0")


class TreeTable:
    """What is done while a session stands still costs what was touched, not what there is."""

    def __init__(self) -> None:
        self.names: dict[bytes, Seen] = {}
        """May hold what lay below a directory that is gone, until ``prune``."""
        self.skipped: list[bytes] = []
        """Sockets and devices."""
        self._linked: set[bytes] = set()
        self._paths: dict[int, bytes] = {}
        self._bytes = 0
        """Of all names and link texts."""
        self._refreshed = False
        """Whether any name was looked at again; a walk alone leaves nothing to prune."""

    def add(self, seen: Seen) -> None:
        """Note a name.

        Raises:
            LimitExceeded: There are more than a checkpoint may have.
        """
        path, kind, names = seen.path, seen.kind, self.names
        self._bytes += len(path) + len(seen.target)
        if self._bytes > bounds.MAX_NAMES_BYTES or len(names) >= bounds.MAX_ENTRIES:
            check_names_bytes(self._bytes)
            check_entries(len(names) + (path not in names))
        if kind is None:
            self.skipped.append(path)
            check_entries(len(self.skipped))
            return
        before = names.get(path)
        if before is not None:
            self._bytes -= len(path) + len(before.target)
        names[path] = seen
        if kind is EntryKind.DIRECTORY:
            return
        first = self._paths.get(seen.ino)
        self._paths[seen.ino] = path
        if seen.nlink > 1:
            self._linked.add(path)
            known = None if first is None else names.get(first)
            # That one had no other name yet when it was seen, and no event tells of it (inotify).
            if known is not None and (known.ino, known.kind) == (seen.ino, _plain(seen, known)):
                self._linked.add(known.path)

    def remove(self, path: bytes) -> None:
        """Forget a name."""
        gone = self.names.pop(path, None)
        if gone is not None:
            self._bytes -= len(path) + len(gone.target)
        self._linked.discard(path)

    @property
    def linked(self) -> frozenset[bytes]:
        """Files that have or had several names."""
        return frozenset(filter(self.is_file, self._linked))

    def refresh(
        self, root_fd: int, touched: Collection[bytes], trees: Collection[bytes] = ()
    ) -> set[bytes]:
        """Look again at the given names, and at all that is below directories that are new.

        Args:
            root_fd: The volume's root.
            touched: Names.
            trees: Those of them below which nothing that was known holds any more.

        Returns the files among what was looked at. What is gone again when it is reached is left
        to who is told of that: while code runs, the watch.
        """
        fresh: set[bytes] = set()
        looked: set[bytes] = set()
        pending = {*touched}
        self._refreshed = self._refreshed or bool(pending)
        while pending:
            found: set[bytes] = set()
            for path in sorted(pending, key=order):
                found |= self._look_at(root_fd, path, path in trees)
            fresh |= {path for path in found if self.is_file(path)}
            looked |= pending | found
            # Whatever was done by one name was done to all: events name only that one.
            inodes = {self.names[path].ino for path in found & self._linked}
            pending = {p for p in self._linked if self.names[p].ino in inodes} - looked
        return fresh

    def _look_at(self, root_fd: int, path: bytes, is_tree: bool) -> set[bytes]:
        """Look again at one name, and at what is below a new directory; what was found."""
        now, known = _look(root_fd, path), self.names.get(path)
        if now is not None and known is not None and known.kind is EntryKind.DIRECTORY:
            if (known.kind, known.ino) == (now.kind, now.ino) and not is_tree:
                self.names[path] = now
                return {path}
            self._purge(path)
        self.remove(path)
        if now is None or not self._has_parent(path):
            return set()
        found: set[bytes] = set()
        for seen in _below(root_fd, path) if now.kind is EntryKind.DIRECTORY else (now,):
            self.add(seen)
            found.add(seen.path)
        return found

    def costs_more_than_a_walk(self, trees: Collection[bytes]) -> bool:
        """Whether ``refresh`` would look through all names too often: once for each tree."""
        return len(trees) * len(self.names) > MAX_STEPS

    def prune(self) -> None:
        """Forget what lies below something that is no directory of the tree."""
        if not self._refreshed:
            return
        for path in sorted(self.names, key=order):
            if not self._has_parent(path):
                self.remove(path)

    def paths_of(self, inodes: Collection[int]) -> set[bytes]:
        """Names of what has these inodes, directories left out."""
        found = {path for path in map(self._paths.get, inodes) if path is not None}
        found |= {path for path in self._linked if self.names[path].ino in inodes}
        return {path for path in found if path in self.names}

    def groups(self) -> dict[bytes, bytes]:
        """Path of each further name of a file to its first name."""
        found: dict[bytes, bytes] = {}
        first: dict[int, bytes] = {}
        for path in sorted(self.linked, key=order):
            leader = first.setdefault(self.names[path].ino, path)
            if leader != path:
                found[path] = leader
        return found

    def is_file(self, path: bytes) -> bool:
        """Whether it is a name of a regular file."""
        seen = self.names.get(path)
        return seen is not None and seen.kind in _FILES

    def ordered(self) -> Iterator[tuple[bytes, Seen, bytes | None]]:
        """(path, what was seen, the first name if this is a further one), directories first.

        A further name always comes after its first one: both are in the same order.
        """
        groups = self.groups()
        for path in sorted(self.names, key=order):
            yield path, _as_file(self.names[path]), groups.get(path)

    def _has_parent(self, path: bytes) -> bool:
        parent, slash, _ = path.rpartition(b"/")
        above = self.names.get(parent)
        return not slash or (above is not None and above.kind is EntryKind.DIRECTORY)

    def _purge(self, path: bytes) -> None:
        """Forget what lay below a directory in whose place there is another thing now."""
        below = path + b"/"
        for name in [name for name in self.names if name.startswith(below)]:
            self.remove(name)


def walk(
    root_fd: int, path: bytes, first_names: FirstNames | None = None, place: Place | None = None
) -> Generator[Seen, None, None]:
    """Scan a directory of the tree, which begins at a volume's root. OSError when it is none."""
    fd = open_entry(root_fd, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield from scan(fd, path, first_names=first_names, place=place)
    finally:
        os.close(fd)


def _below(root_fd: int, path: bytes) -> Generator[Seen, None, None]:
    """Walk a directory that may be gone by now."""
    try:
        yield from walk(root_fd, path)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _plain(seen: Seen, known: Seen) -> EntryKind | None:
    """Kind that another name of the same thing has: of a file, a walk calls one of them a link."""
    return known.kind if seen.kind in _FILES and known.kind in _FILES else seen.kind


def _as_file(seen: Seen) -> Seen:
    if seen.kind is EntryKind.HARDLINK:
        return seen._replace(kind=EntryKind.FILE, target=b"")
    return seen


def _look(root_fd: int, path: bytes) -> Seen | None:
    """Look at one name; None when there is nothing."""
    try:
        fd = open_entry(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    try:
        found = os.fstat(fd)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
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
            os.readlink(b"", dir_fd=fd) if kind is EntryKind.SYMLINK else b"",
        )
    finally:
        os.close(fd)
