"""Listing directories of a workspace: never through a link, in bounded memory.

Every directory below the listed one is opened from that one's descriptor with links refused, one
at a time, so neither depth nor swapped names matter. Of all entries only the first ``limit`` by
path bytes are kept (and stat'ed); the rest are counted.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from codegen_mcp.core.errors import InvalidRequest, LimitExceeded
from codegen_mcp.core.paths import MAX_PATH_BYTES, Parts, join_path, show_path
from codegen_mcp.engine.workspace_glob import Matcher
from codegen_mcp.engine.workspace_threads import Stop
from codegen_mcp.engine.workspace_tree import LISTABLE, Tree, kind_of
from codegen_mcp.sandbox.openat2 import FOLLOW_BENEATH, NO_LINKS, open_beneath
from codegen_mcp.tools.base import FileStat

MAX_LISTED = 100_000
"""Entries that one call may return."""
MAX_SCANNED = 2_000_000
"""Entries that one call may look at."""
_CHECK_EVERY = 64
_SKIPPED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.EACCES)
"""A directory that was removed, replaced or closed to us since its name was read."""


class TooLongInline(Exception):
    """There is more to look at than the event loop should wait for; do it in a thread."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What is asked for."""

    parts: Parts
    recursive: bool
    matches: Matcher | None
    limit: int

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= MAX_LISTED:
            raise InvalidRequest(f"limit {self.limit!r} is not between 0 and {MAX_LISTED}")


class _Budget:
    """How much may still be looked at."""

    def __init__(self, listing: Listing, stop: Stop, seconds: float | None) -> None:
        self._listing = listing
        self._stop = stop
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._seen = 0

    def spend(self) -> None:
        """Count one entry."""
        self._seen += 1
        if self._seen % _CHECK_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Raise when there is a reason to end."""
        self._stop.check()
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TooLongInline
        if self._seen > MAX_SCANNED:
            raise LimitExceeded(
                f"{show_path(join_path(self._listing.parts))} has more than {MAX_SCANNED} "
                "entries; list its directories one by one"
            )


@dataclass(slots=True)
class _First:
    """Keeps the first ``limit`` entries by path of all that are offered."""

    limit: int
    kept: list[FileStat] = field(default_factory=list)
    _last: bytes | None = None

    def offer(self, dir_fd: int, name: bytes, path: bytes) -> int:
        """Keep the entry if it may be among the first; returns how many it counts (0: gone)."""
        if self.limit == 0 or (self._last is not None and path > self._last):
            return 1
        found = describe(dir_fd, name, path)
        if found is None:
            return 0
        self.kept.append(found)
        if len(self.kept) >= 2 * self.limit + 512:
            self.result()
        return 1

    def result(self) -> list[FileStat]:
        self.kept.sort(key=lambda entry: entry.path)
        del self.kept[self.limit :]
        if self.kept and len(self.kept) == self.limit:
            self._last = self.kept[-1].path
        return self.kept


def list_tree(
    tree: Tree, listing: Listing, stop: Stop, *, budget_s: float | None = None
) -> tuple[Sequence[FileStat], int]:
    """(the first ``limit`` entries by path, how many matched).

    Args:
        tree: The workspace.
        listing: What is asked for.
        stop: Checked every few entries.
        budget_s: Give up with TooLongInline after this time; None is without end.
    """
    base = open_beneath(tree.fd, join_path(listing.parts), LISTABLE, resolve=FOLLOW_BENEATH)
    try:
        return _scan(tree, listing, base, _Budget(listing, stop, budget_s))
    finally:
        os.close(base)


def _scan(
    tree: Tree, listing: Listing, base: int, budget: _Budget
) -> tuple[Sequence[FileStat], int]:
    prefix = b"/".join(listing.parts) + b"/" if listing.parts else b""
    first = _First(listing.limit)
    matched = 0
    pending: list[_Directory] = [_Directory(None, b"")]
    while pending:
        directory = pending.pop()
        budget.check()
        below = directory.path()
        with closing(_entries(base, below, prefix)) as entries:
            for dir_fd, entry in entries:
                budget.spend()
                name = os.fsencode(entry.name)
                if name in tree.hidden:
                    continue
                if listing.recursive and entry.is_dir(follow_symlinks=False):
                    pending.append(_Directory(directory, name))
                relative = below + name
                if listing.matches is not None and not listing.matches(relative, name):
                    continue
                matched += first.offer(dir_fd, name, prefix + relative)
    return first.result(), matched


@dataclass(frozen=True, slots=True)
class _Directory:
    """One to be looked at; parents are shared, so that a wide deep tree stays small."""

    parent: _Directory | None
    name: bytes

    def path(self) -> bytes:
        names: list[bytes] = []
        at: _Directory | None = self
        while at is not None and at.parent is not None:
            names.append(at.name)
            at = at.parent
        return b"".join(name + b"/" for name in reversed(names))


def _entries(
    base: int, below: bytes, prefix: bytes
) -> Generator[tuple[int, os.DirEntry[str]], None, None]:
    if len(prefix) + len(below) > MAX_PATH_BYTES:
        raise LimitExceeded(
            f"directory {show_path(prefix + below)} is nested deeper than the {MAX_PATH_BYTES} "
            "bytes that a path can have; list without recursive, or delete it"
        )
    try:
        dir_fd = open_beneath(base, below or b".", LISTABLE, resolve=NO_LINKS)
    except OSError as error:
        if not below or error.errno not in _SKIPPED:
            raise
        return
    try:
        with os.scandir(dir_fd) as entries:
            for entry in entries:
                yield dir_fd, entry
    finally:
        os.close(dir_fd)


def describe(dir_fd: int, name: bytes, path: bytes) -> FileStat | None:
    """Stat one entry without following it; None when it is gone."""
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        link = os.readlink(name, dir_fd=dir_fd) if stat.S_ISLNK(found.st_mode) else b""
    except OSError:
        return None
    return _file_stat(found, path, link)


def describe_open(fd: int, path: bytes) -> FileStat:
    """Stat what an O_PATH descriptor holds."""
    found = os.fstat(fd)
    link = os.readlink(b"", dir_fd=fd) if stat.S_ISLNK(found.st_mode) else b""
    return _file_stat(found, path, link)


def _file_stat(found: os.stat_result, path: bytes, link: bytes) -> FileStat:
    return FileStat(
        path=path,
        kind=kind_of(found.st_mode),
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        mode=stat.S_IMODE(found.st_mode),
        link_target=link,
    )
