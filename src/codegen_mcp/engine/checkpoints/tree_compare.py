"""Compares a tree as it was walked with the manifest that it must be."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.core.errors import Corrupt
from codegen_mcp.core.paths import show_path
from codegen_mcp.engine.checkpoints.scan import FirstNames, Seen, scan

_FILE = EntryKind.FILE


def check_volume(root: Path, entries: Iterable[Entry]) -> None:
    """Walk both directories of a volume and refuse what a manifest does not say. For a thread.

    Args:
        root: Holds ``workspace`` and ``venv``; nothing may change them meanwhile.
        entries: Of the manifest.

    Raises:
        Corrupt: Names the first difference. Contents are not read: who wrote them hashed them.
        WrongState, LimitExceeded, OSError: As ``scan``.
    """
    difference = first_difference(entries, walk_volume(root))
    if difference:
        raise Corrupt(
            f"the restored tree is not what the checkpoint's manifest says: {difference}; "
            "restore another checkpoint"
        )


def walk_volume(root: Path) -> Iterator[Seen]:
    """Yield every name of both directories of a volume, hard links across them found. Blocks."""
    names: FirstNames = {}
    for name in (b"workspace", b"venv"):
        path = os.fsencode(root) + b"/" + name
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield from scan(fd, name, first_names=names)
        finally:
            os.close(fd)


def first_difference(entries: Iterable[Entry], seen: Iterable[Seen]) -> str:
    """Compare kind, mode, time, size, link target and hard links of every name, in any order.

    Which name of a file counts as its first one does not matter, only which belong together. Sizes
    are compared of files alone: that of a directory is the file system's affair.

    Args:
        entries: Of the manifest.
        seen: As ``scan`` yields them, of both roots with shared first names.

    Returns:
        Words for people; empty when there is none.
    """
    found: dict[bytes, Seen] = {}
    for one in seen:
        if one.path in found:
            return f"{show_path(one.path)} was seen twice"
        found[one.path] = one
    wanted: dict[bytes, Entry] = {}
    for entry in entries:
        wanted[entry.path] = entry
        if entry.path not in found:
            return f"{show_path(entry.path)} is missing"
    for path in found:
        if path not in wanted:
            return f"{show_path(path)} should not be there"
    groups = _Groups(wanted)
    for entry in wanted.values():
        one = found[entry.path]
        difference = _of_one(entry, one) or groups.differ(entry, one)
        if difference:
            return f"{show_path(entry.path)} {difference}"
    return ""


def _of_one(entry: Entry, one: Seen) -> str:
    kind, have = _plain(entry.kind), _plain(one.kind)
    if kind is not have or have is None:
        name = have.name.lower() if have else "special file"
        return f"is a {name}, not a {entry.kind.name.lower()}"
    if one.mode != entry.mode:
        return f"has mode {one.mode:04o}, not {entry.mode:04o}"
    if one.mtime_ns != entry.mtime_ns:
        return f"has mtime_ns {one.mtime_ns}, not {entry.mtime_ns}"
    if kind is EntryKind.SYMLINK and one.target != entry.target:
        return f"leads to {one.target!r}, not to {entry.target!r}"
    return ""


class _Groups:
    """Which names are one file: by the manifest, and by inode."""

    def __init__(self, wanted: Mapping[bytes, Entry]) -> None:
        self._wanted = wanted
        self._names = Counter(_first(one) for one in wanted.values() if _plain(one.kind) is _FILE)
        self._inodes: dict[bytes, int] = {}
        self._firsts: dict[int, bytes] = {}

    def differ(self, entry: Entry, one: Seen) -> str:
        """Compare one file with those before it."""
        if _plain(entry.kind) is not _FILE:
            return ""
        path = _first(entry)
        first = self._wanted.get(path)
        if first is None or first.kind is not _FILE:
            return f"is a link to {show_path(path)}, which is no file of the manifest"
        if one.size != first.size:
            return f"has {one.size} bytes, not {first.size}"
        if self._inodes.setdefault(path, one.ino) != one.ino:
            return f"is not the same file as {show_path(path)}"
        other = self._firsts.setdefault(one.ino, path)
        if other != path:
            return f"is the same file as {show_path(other)}"
        if one.nlink != self._names[path]:
            return f"has {one.nlink} names, not {self._names[path]}"
        return ""


def _plain(kind: EntryKind | None) -> EntryKind | None:
    return _FILE if kind is EntryKind.HARDLINK else kind


def _first(entry: Entry) -> bytes:
    return entry.target if entry.kind is EntryKind.HARDLINK else entry.path
