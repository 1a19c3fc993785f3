"""One capture of a session's tree, in three steps that block and belong in threads.

``survey`` while code goes on: every name is looked at, and the content of what changed since the
parent is packed. ``recheck`` while nothing runs: what was touched meanwhile is looked at again, and
copied aside where its content is not packed as it is now. ``complete`` afterwards: the copies are
packed, and the manifest is made.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.engine.checkpoints.archive_writer import ArchiveWriter, Changed
from codegen_mcp.engine.checkpoints.aside import Aside, Copy
from codegen_mcp.engine.checkpoints.live_state import TICK_NS, LiveState, State, changed
from codegen_mcp.engine.checkpoints.scan import FirstNames, Seen
from codegen_mcp.engine.checkpoints.source_files import (
    data_segments,
    hash_whole,
    reader,
    regular_file,
)
from codegen_mcp.engine.checkpoints.tree_table import TreeTable, order, walk
from codegen_mcp.engine.checkpoints.tree_watch import Changes

ROOTS = (b"workspace", b"venv")


@dataclass(frozen=True, slots=True)
class Base:
    """What an incremental capture builds on."""

    entries: Mapping[bytes, Entry]
    live: LiveState | None
    """None: nothing is known of the live tree then, every file is hashed."""


@dataclass(frozen=True, slots=True)
class Captured:
    """What a capture gave."""

    entries: list[Entry]
    states: dict[bytes, State]
    skipped: list[bytes] = field(default_factory=list)
    """Sockets and devices, which are never saved."""


class Capture:
    """One capture."""

    def __init__(
        self, root_fd: int, writer: ArchiveWriter, aside: Aside, number: int, base: Base | None
    ) -> None:
        """Prepare it.

        Args:
            root_fd: The volume's root directory.
            writer: Takes the members; finished by the caller.
            aside: Takes copies; closed by the caller.
            number: Of the checkpoint.
            base: None is a full one.
        """
        self._root_fd = root_fd
        self._writer = writer
        self._aside = aside
        self._number = number
        self._base = base
        self._table = TreeTable()
        self._content: dict[bytes, tuple[Seen, Entry]] = {}
        """What is packed, or lies in an older archive: as it was seen, and its entry."""
        self._copies: dict[bytes, tuple[Seen, Copy]] = {}
        self._unsteady: set[bytes] = set()
        """Changed while they were read."""
        self._begun_ns = 0
        self._forced: set[bytes] = set()
        """May have been written to through a mapping."""
        self._stale: set[bytes] = set()
        """Packed, and not valid any more."""

    def survey(self) -> None:
        """Walk and pack. OSError where the disk of the worker is full."""
        self._begun_ns = time.time_ns()
        known: FirstNames = {}
        for root in ROOTS:
            for seen in walk(self._root_fd, root, known):
                self._table.add(seen)
                if seen.kind is EntryKind.FILE:
                    self._pack(seen)

    def recheck(self, changes: Changes, mapped: Collection[int]) -> None:
        """See what changed since ``survey``; nothing may run meanwhile.

        Args:
            changes: What was touched; after an overflow everything is looked at again.
            mapped: Inodes that may have been written to without a trace.
        """
        doubt_ns = 0
        if changes.overflow:
            self._table = TreeTable()
            for root in ROOTS:
                for seen in walk(self._root_fd, root):
                    self._table.add(seen)
            suspects = {path for path in self._table.names if self._table.is_file(path)}
            # Written twice within a tick of the clock looks like once.
            doubt_ns = self._begun_ns - TICK_NS
        else:
            named = self._table.paths_of({*changes.inodes, *mapped})
            touched = changes.paths | named | self._unsteady
            suspects = self._table.refresh(self._root_fd, touched, changes.trees)
        self._forced = forced = self._table.paths_of(mapped)
        groups = self._table.groups()
        for path in suspects | forced:
            path = groups.get(path, path)
            if not self._table.is_file(path) or path in self._copies:
                continue
            seen, known = self._table.names[path], self._content.get(path)
            steady = known is not None and path not in self._unsteady and path not in forced
            if (
                known is None
                or not steady
                or not _same_content(known[0], seen)
                or (doubt_ns and seen.ctime_ns >= doubt_ns)
            ):
                self._copy(path, seen)

    def complete(self) -> Captured:
        """Pack the copies and everything that has no content; all entries in order."""
        self._table.prune()
        leading = {path for path, seen, target in self._table.ordered() if target is None}
        for path in [path for path in self._content if path not in leading]:
            self._forget(path)
        for path in [path for path in self._copies if path not in leading]:
            del self._copies[path]
        self._writer.drop(self._stale)
        for path in sorted(self._copies, key=order):
            self._pack_copy(path, *self._copies[path])
        entries: list[Entry] = []
        states: dict[bytes, State] = {}
        for path, seen, target in self._table.ordered():
            if target is not None:
                leader = self._table.names[target]
                entry = Entry(path, EntryKind.HARDLINK, leader.mode, leader.mtime_ns, target=target)
            elif seen.kind is EntryKind.FILE:
                entry = replace(self._content[path][1], mode=seen.mode, mtime_ns=seen.mtime_ns)
                # What is mapped can be written to later without a trace: it stays in doubt.
                if path not in self._forced:
                    states[path] = State.of(seen)
            else:
                assert seen.kind is not None
                entry = Entry(path, seen.kind, seen.mode, seen.mtime_ns, target=seen.target)
            entries.append(entry)
            if entry.kind is not EntryKind.FILE and self._is_new(entry):
                self._writer.add(entry)
        return Captured(entries, states, self._table.skipped)

    def _is_new(self, entry: Entry) -> bool:
        return self._base is None or self._base.entries.get(entry.path) != entry

    def _pack(self, seen: Seen) -> None:
        try:
            with regular_file(self._root_fd, seen.path, seen.ino) as (fd, found):
                seen = _refreshed(seen, found)
                older = self._older(seen, fd)
                if older is not None:
                    self._content[seen.path] = seen, older
                    return
                segments = data_segments(fd, found)
                entry = self._entry(seen, sparse=segments is not None)
                entry = self._writer.add(entry, reader(fd), segments)
                self._content[seen.path] = seen, entry
                if not _same_content(seen, _refreshed(seen, os.fstat(fd))):
                    self._unsteady.add(seen.path)
        except (FileNotFoundError, Changed):
            self._unsteady.add(seen.path)

    def _older(self, seen: Seen, fd: int) -> Entry | None:
        """Return the parent's entry when its content is this file's."""
        entry = None if self._base is None else self._base.entries.get(seen.path)
        if self._base is None or entry is None or entry.kind is not EntryKind.FILE:
            return None
        live = self._base.live
        state = None if live is None else live.states.get(seen.path)
        if live is not None and state is not None:
            verdict = changed(seen, state, entry, live.taken_ns)
            if verdict in ("same", "meta"):
                return entry
        if entry.size != seen.size:
            return None
        return entry if hash_whole(fd, seen.size) == (entry.size, entry.sha256) else None

    def _copy(self, path: bytes, seen: Seen) -> None:
        """Have a file's content of this moment."""
        self._forget(path)
        try:
            with regular_file(self._root_fd, path, seen.ino) as (fd, found):
                seen = _refreshed(seen, found)
                self._table.names[path] = seen
                self._copies[path] = seen, self._aside.take(fd, found)
        except FileNotFoundError:
            self._table.remove(path)

    def _pack_copy(self, path: bytes, seen: Seen, copy: Copy) -> None:
        older = None if self._base is None else self._base.entries.get(path)
        entry = self._entry(seen, sparse=copy.segments is not None)
        if older is not None and older.kind is EntryKind.FILE and older.size == seen.size:
            digest = _digest(self._aside, copy)
            if digest == older.sha256:
                self._content[path] = seen, older
                return
        packed = self._writer.add(entry, self._aside.reader(copy), copy.segments)
        self._content[path] = seen, packed

    def _forget(self, path: bytes) -> None:
        known = self._content.pop(path, None)
        if known is not None and known[1].source == self._number:
            self._stale.add(path)

    def _entry(self, seen: Seen, *, sparse: bool) -> Entry:
        return Entry(
            seen.path,
            EntryKind.FILE,
            seen.mode,
            seen.mtime_ns,
            size=seen.size,
            source=self._number,
            sparse=sparse,
        )


def _same_content(one: Seen, other: Seen) -> bool:
    """Whether nothing says that a file's content changed between two looks at it."""
    return (one.ino, one.size, one.mtime_ns, one.ctime_ns) == (
        other.ino,
        other.size,
        other.mtime_ns,
        other.ctime_ns,
    )


def _refreshed(seen: Seen, found: os.stat_result) -> Seen:
    return seen._replace(
        mode=found.st_mode & 0o7777,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        size=found.st_size,
        blocks=found.st_blocks,
        nlink=found.st_nlink,
    )


def _digest(aside: Aside, copy: Copy) -> bytes:
    digest = hashlib.sha256()
    read = aside.reader(copy)
    while data := read(1024 * 1024):
        digest.update(data)
    return digest.digest()
