"""Tells which names of a session's trees were touched while they were read.

A watch begins before the first look and is drained for the last time while the session stands
still. It may name too much, never too little: where it cannot know, it says ``overflow``, and a
second walk finds out. What no watch sees are writes through a shared mapping (``writers.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

MAX_CHANGES = 200_000
"""Names that one watch keeps; more is an overflow."""
MAX_CHANGES_BYTES = 64 * 1024 * 1024
"""Of all these names together; so is more of them."""


@dataclass(slots=True)
class Changes:
    """What was touched. ``bool`` of it: whether anything was."""

    paths: set[bytes] = field(default_factory=set)
    """Names to be looked at again, as in the manifest (``workspace/a``), whether they exist now or
    not. Directories are here when names in them came or went, or their own mode or times changed;
    it is said of themselves alone."""
    trees: set[bytes] = field(default_factory=set)
    """Names at which a directory came, went or was replaced: everything that was known below is
    void, and everything that is there now is to be looked at. Each is in ``paths`` too."""
    inodes: set[int] = field(default_factory=set)
    """Of files that were written or given other attributes: by whatever name it was done, and be
    that name gone, every name of such an inode is to be looked at again."""
    overflow: bool = False
    """Anything may have changed."""

    def add(self, other: Changes) -> None:
        """Take in what another drain gave; too much of it is an overflow."""
        if not (self.overflow or other.overflow):
            self.paths |= other.paths
            self.trees |= other.trees
            self.inodes |= other.inodes
        self.overflow |= other.overflow
        self.overflow |= len(self.paths) > MAX_CHANGES or len(self.inodes) > MAX_CHANGES
        self.overflow |= sum(map(len, self.paths)) > MAX_CHANGES_BYTES
        if self.overflow:
            self.paths, self.trees, self.inodes = set(), set(), set()

    def __bool__(self) -> bool:
        return bool(self.overflow or self.paths or self.inodes)


class TreeWatch(Protocol):
    """One watch over the trees of one session; blocking, used by one thread at a time."""

    @property
    def name(self) -> str:
        """``fanotify``, ``inotify`` or ``none``."""

    def start(self) -> None:
        """Begin; whatever is changed after this is told.

        Raises:
            OSError: It is not to be had here; nothing is left open.
        """

    def drain(self) -> Changes:
        """Return what was touched since the last drain (or start).

        While code runs, call it a few times a second: what was not drained is kernel memory that
        counts as the worker's.
        """

    def close(self) -> None:
        """End it. Idempotent."""


class NoWatch:
    """Knows nothing: every drain says ``overflow``, so that a second walk takes its place."""

    name = "none"

    def start(self) -> None:
        """Nothing to begin."""

    def drain(self) -> Changes:
        """Say so."""
        return Changes(overflow=True)

    def close(self) -> None:
        """Nothing to end."""
