"""One capture of a session's tree, in steps that block and belong in threads.

``survey`` while code goes on: every name is looked at, and the content of what changed since the
parent is packed. ``catch_up``, still while code goes on and perhaps several times: what was touched
meanwhile is packed again. ``recheck`` while nothing runs: what was touched since then is looked at
again, and files among it are copied aside. ``complete`` afterwards: the copies are packed, and the
manifest is made.

Equal times prove nothing of a file that was touched: two writes within a tick of the clock look
like one, and stores through a shared mapping leave no trace at all once a page is dirty. What a
watch names is therefore taken again whatever its times say, and what may be mapped as well.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.engine.checkpoints.archive_block import PIECE_BYTES
from codegen_mcp.engine.checkpoints.archive_writer import ArchiveWriter, Changed
from codegen_mcp.engine.checkpoints.aside import Aside, Copy
from codegen_mcp.engine.checkpoints.bounds import check_holes
from codegen_mcp.engine.checkpoints.live_state import TICK_NS, LiveState, State, changed
from codegen_mcp.engine.checkpoints.scan import FirstNames, Place, Seen
from codegen_mcp.engine.checkpoints.seen_again import is_as, refreshed, same_content
from codegen_mcp.engine.checkpoints.source_files import (
    Read,
    Segments,
    data_segments,
    hash_whole,
    open_regular,
    regular_file,
)
from codegen_mcp.engine.checkpoints.tree_table import TreeTable, order, walk
from codegen_mcp.engine.checkpoints.tree_watch import Changes
from codegen_mcp.engine.checkpoints.writers import Writers

ROOTS = (b"venv", b"workspace")
"""In the manifest's order, so that of several names of a file the same one counts as its first."""


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


class Stopped(Exception):
    """Whoever wanted the capture does not want it any more."""


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
        self._content: dict[bytes, tuple[Seen, Entry | None]] = {}
        """What is packed, or lies in an older archive: as it was seen, and its entry. None while
        the entry waits for the sha256, which a thread of the writer's makes."""
        self._copies: dict[bytes, tuple[Seen, Copy]] = {}
        self._unsteady: set[bytes] = set()
        """Changed while they were read."""
        self._begun_ns = 0
        self._mapped: frozenset[int] = frozenset()
        """Inodes that were mapped shared when it began."""
        self._forced: set[bytes] = set()
        """May have been written to through a mapping that is still there."""
        self._stale: set[bytes] = set()
        """Packed, and not valid any more."""
        self._lost_track = False
        """Too much was touched to look at each of it: everything is looked at again at the end."""
        self._holes = 0
        """Bytes of all holes that were packed."""
        self._stopped = False

    def stop(self) -> None:
        """Let a step under way end soon, by ``Stopped``; for another thread."""
        self._stopped = True

    def survey(self, writers: Writers | None = None) -> None:
        """Walk and pack.

        Args:
            writers: What the session's processes may write to now.

        Raises:
            Stopped: ``stop`` was called. OSError: The disk of the worker is full.
        """
        self._begun_ns = time.time_ns()
        self._mapped = frozenset(writers.mapped if writers is not None else ())
        known: FirstNames = {}
        place = Place()
        for root in ROOTS:
            with closing(walk(self._root_fd, root, known, place)) as found:
                for seen in found:
                    if self._stopped:
                        raise Stopped
                    self._table.add(seen)
                    if seen.kind is EntryKind.FILE:
                        self._pack(seen, place.fd)

    def catch_up(self, changes: Changes) -> int:
        """Pack again what was touched, so that less is left for the moment without code.

        Args:
            changes: Everything since the step before; no overflow.

        Returns:
            How many files were packed.
        """
        if self._lost_track or self._table.costs_more_than_a_walk(changes.trees):
            self._lost_track = True
            return 0
        touched = changes.paths | self._table.paths_of(changes.inodes) | self._unsteady
        self._unsteady = set()
        looked = self._table.refresh(self._root_fd, touched, changes.trees)
        if changes.trees:
            self._table.prune()  # else what lay in a directory comes back with the next of its name
        groups = self._table.groups()
        again = {groups.get(path, path) for path in looked}
        again |= {path for path in groups.values() if path not in self._content}
        for path in sorted(again, key=order):
            self._check_stopped()
            self._forget(path)
            self._writer.drop(self._stale)
            self._stale.clear()
            if self._table.is_file(path):
                self._pack(self._table.names[path])
        return len(again)

    def recheck(self, changes: Changes, writers: Writers) -> None:
        """See what changed since the step before; nothing may run meanwhile.

        Args:
            changes: What was touched; after an overflow everything is looked at again.
            writers: What may be written to without an event.
        """
        doubtful: set[bytes] = set()
        linked: frozenset[bytes] = frozenset()
        if (
            changes.overflow
            or self._lost_track
            or self._table.costs_more_than_a_walk(changes.trees)
        ):
            self._table = TreeTable()
            for root in ROOTS:
                for seen in walk(self._root_fd, root):
                    self._table.add(seen)
            suspects = {path for path in self._table.names if self._table.is_file(path)}
        else:
            # A file that is open may have been mapped, and is not any more: its times tell.
            opened = self._table.paths_of(writers.inodes)
            touched = changes.paths | self._table.paths_of(changes.inodes) | self._unsteady
            looked = self._table.refresh(self._root_fd, touched | opened, changes.trees)
            doubtful = looked - (opened - touched)
            linked = self._table.linked - opened  # which of them is the first may have changed
            suspects = looked | linked
        self._forced = self._table.paths_of(writers.mapped)
        doubtful |= self._forced
        groups = self._table.groups()
        for path in suspects | doubtful:
            leader = groups.get(path, path)
            if not self._table.is_file(leader) or leader in self._copies:
                continue
            if path in doubtful or not self._is_packed(leader, watched=path in linked):
                self._copy(leader, self._table.names[leader])

    def _is_packed(self, path: bytes, *, watched: bool) -> bool:
        """Whether the content that is known of a file is what it has now.

        Args:
            path: Its first name.
            watched: It cannot have been written to, or the watch had named it.
        """
        known, seen = self._content.get(path), self._table.names[path]
        if known is None or path in self._unsteady or not same_content(known[0], seen):
            return False
        in_time = seen.ctime_ns < self._begun_ns - TICK_NS and seen.ino not in self._mapped
        return watched or in_time

    def complete(self) -> Captured:
        """Pack the copies and everything that has no content; all entries in order."""
        self._table.prune()
        groups = self._table.groups()

        def leads(path: bytes) -> bool:
            return path not in groups and self._table.is_file(path)

        for path in [path for path in self._content if not leads(path)]:
            self._forget(path)
        for path in [path for path in self._copies if not leads(path)]:
            del self._copies[path]
        self._writer.drop(self._stale)
        for path in sorted(self._copies, key=order):
            self._pack_copy(path, *self._copies[path])
        placed = list(self._table.ordered())
        others = self._add_others(placed)
        self._writer.end()
        entries: list[Entry] = []
        states: dict[bytes, State] = {}
        for path, seen, _ in placed:
            entry = others.get(path)
            if entry is None:
                entry = self._file_entry(path, seen)
                # What is mapped can be written to later without a trace: it stays in doubt.
                if path not in self._forced:
                    states[path] = State.of(seen)
            entries.append(entry)
        return Captured(entries, states, self._table.skipped)

    def _add_others(self, placed: Sequence[tuple[bytes, Seen, bytes | None]]) -> dict[bytes, Entry]:
        """Pack what has no content; the entries of all such names."""
        others: dict[bytes, Entry] = {}
        for path, seen, target in placed:
            if target is not None:
                leader = self._table.names[target]
                entry = Entry(path, EntryKind.HARDLINK, leader.mode, leader.mtime_ns, target=target)
            elif seen.kind is EntryKind.FILE:
                continue
            else:
                assert seen.kind is not None
                entry = Entry(path, seen.kind, seen.mode, seen.mtime_ns, target=seen.target)
            others[path] = entry
            if self._is_new(entry):
                self._writer.add(entry)
        return others

    def _file_entry(self, path: bytes, seen: Seen) -> Entry:
        """Return the entry of a file whose content is in an archive."""
        packed, entry = self._content[path]
        if entry is None:
            entry = self._entry(packed, sha256=self._writer.sha256_of(path))
        if (entry.mode, entry.mtime_ns) != (seen.mode, seen.mtime_ns):
            entry = replace(entry, mode=seen.mode, mtime_ns=seen.mtime_ns)
        return entry

    def _is_new(self, entry: Entry) -> bool:
        return self._base is None or self._base.entries.get(entry.path) != entry

    def _pack(self, seen: Seen, directory: int = -1) -> None:
        if self._base is not None:
            known = self._known(seen)
            if known is not None:
                self._content[seen.path] = seen, known
                return
        try:
            fd, found = open_regular(self._root_fd, seen.path, seen.ino, directory)
        except FileNotFoundError:
            self._unsteady.add(seen.path)
            return
        try:
            seen = refreshed(seen, found)
            segments = data_segments(fd, found)
            if self._base is not None:
                older = self._older(seen, fd, sparse=segments is not None)
                if older is not None:
                    self._content[seen.path] = seen, older
                    return
            entry = None
            if segments is None and seen.size <= PIECE_BYTES:
                self._writer.add_later(seen.path, seen.mode, seen.mtime_ns, seen.size, fd)
            else:
                self._count_holes(seen, segments)
                entry = self._entry(seen, sparse=segments is not None)
                entry = self._writer.add(entry, self._reader(fd), segments)
            self._content[seen.path] = seen, entry
            if not is_as(seen, os.fstat(fd)):
                self._unsteady.add(seen.path)
        except Changed:
            self._unsteady.add(seen.path)
        finally:
            os.close(fd)

    def _known(self, seen: Seen) -> Entry | None:
        """Return the parent's entry when its content is proven to be this file's, unread."""
        if self._base is None or self._base.live is None:
            return None
        entry, state = self._base.entries.get(seen.path), self._base.live.states.get(seen.path)
        if entry is None or state is None or entry.kind is not EntryKind.FILE:
            return None
        verdict = changed(seen, state, entry, self._base.live.taken_ns)
        return entry if verdict in ("same", "meta") else None

    def _older(self, seen: Seen, fd: int, *, sparse: bool) -> Entry | None:
        """Return the parent's entry when its content is this file's, holes included."""
        entry = None if self._base is None else self._base.entries.get(seen.path)
        if entry is None or entry.kind is not EntryKind.FILE:
            return None
        known = self._known(seen)
        if known is not None:
            return known
        if entry.size != seen.size or entry.sparse or sparse:
            return None
        return entry if hash_whole(fd, seen.size) == (entry.size, entry.sha256) else None

    def _copy(self, path: bytes, seen: Seen) -> None:
        """Have a file's content of this moment."""
        self._forget(path)
        try:
            with regular_file(self._root_fd, path, seen.ino) as (fd, found):
                seen = refreshed(seen, found)
                self._table.names[path] = seen
                self._copies[path] = seen, self._aside.take(fd, found)
        except FileNotFoundError:
            self._table.remove(path)

    def _pack_copy(self, path: bytes, seen: Seen, copy: Copy) -> None:
        older = None if self._base is None else self._base.entries.get(path)
        self._count_holes(seen, copy.segments)
        entry = self._entry(seen, sparse=copy.segments is not None)
        if (
            older is not None
            and (older.kind, older.size) == (EntryKind.FILE, seen.size)
            and not (older.sparse or entry.sparse)
            and _digest(self._aside, copy) == older.sha256
        ):
            self._content[path] = seen, older
            return
        packed = self._writer.add(entry, self._aside.reader(copy), copy.segments)
        self._content[path] = seen, packed

    def _count_holes(self, seen: Seen, segments: Segments | None) -> None:
        """Refuse what would take hours to hash.

        Raises:
            LimitExceeded: Too many bytes of holes.
        """
        if segments is not None:
            self._holes += seen.size - sum(length for _, length in segments)
            check_holes(self._holes)

    def _reader(self, fd: int) -> Read:
        """Read a file as long as somebody wants the capture."""

        def read(count: int) -> bytes:
            self._check_stopped()
            return os.read(fd, count)

        return read

    def _check_stopped(self) -> None:
        if self._stopped:
            raise Stopped

    def _forget(self, path: bytes) -> None:
        known = self._content.pop(path, None)
        if known is not None and (known[1] is None or known[1].source == self._number):
            self._stale.add(path)

    def _entry(self, seen: Seen, *, sparse: bool = False, sha256: bytes = b"") -> Entry:
        path, mode, mtime_ns, size = seen.path, seen.mode, seen.mtime_ns, seen.size
        number = self._number
        return Entry(path, EntryKind.FILE, mode, mtime_ns, size, sha256, b"", number, sparse)


def _digest(aside: Aside, copy: Copy) -> bytes:
    digest = hashlib.sha256()
    read = aside.reader(copy)
    while data := read(1024 * 1024):
        digest.update(data)
    return digest.digest()
