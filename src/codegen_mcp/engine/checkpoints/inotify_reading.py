"""What one drain of an inotify queue has told so far."""

from __future__ import annotations

import os
from collections.abc import Callable

from codegen_mcp.engine.checkpoints.tree_watch import MAX_CHANGES, MAX_CHANGES_BYTES, Changes
from codegen_mcp.sandbox import inotify

GONE_NAMES = inotify.DELETE | inotify.MOVED_FROM
NEW_NAMES = inotify.CREATE | inotify.MOVED_TO


class Blind(Exception):
    """The watch can no longer tell."""


class Reading:
    """What one drain has read so far."""

    def __init__(self) -> None:
        self.changes = Changes()
        self._events = 0
        self._bytes = 0
        self._gone: set[bytes] = set()
        """Names whose last event removed them."""
        self._written: set[bytes] = set()
        """Names that were written, and neither came nor went since."""

    def note(self, path: bytes, mask: int) -> None:
        """Take one event on a name.

        Raises:
            Blind: There are too many.
        """
        self.changes.paths.add(path)
        self._events += 1
        self._bytes += len(path)
        if self._events > MAX_CHANGES or self._bytes > MAX_CHANGES_BYTES:
            raise Blind
        if mask & GONE_NAMES:
            self._gone.add(path)
            self._written.discard(path)
        elif mask & NEW_NAMES:
            self._gone.discard(path)
            self._written.discard(path)
        elif not mask & inotify.ISDIR:
            self._written.add(path)

    def find_missing(self, look: Callable[[bytes], os.stat_result | None]) -> bool:
        """Look at what was written; whether something was whose name is not there."""
        for path in self._written:
            found = None if path in self._gone else look(path)
            if found is not None:
                if found.st_nlink > 1:
                    self.changes.inodes.add(found.st_ino)
            elif not self._moved(path):
                return True
        return False

    def _moved(self, path: bytes) -> bool:
        """Whether a directory above came or went, so that the name is looked for anew anyway."""
        while path:
            path = path.rpartition(b"/")[0]
            if path in self.changes.trees:
                return True
        return False
