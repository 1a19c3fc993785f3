"""How much of the worker's disk checkpoints may take: not what sessions were promised."""

from __future__ import annotations

import errno
import io
import os
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.limits import MIB
from codegen_mcp.sandbox.volumes.space import free_on

STEP = 8 * MIB
"""How much is written before the disk is looked at again."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one piece of work may use, for threads."""

    directory: Path
    floor: int
    """Bytes that must stay free on its disk."""

    def check(self, size: int = 0) -> None:
        """OSError (ENOSPC) when so many bytes more would be too much."""
        if free_on(self.directory) - size < self.floor:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))


class BoundedFile(io.FileIO):
    """A file of ours that may only grow while there is room."""

    def __init__(self, fd: int, room: Room) -> None:
        """Take over the descriptor."""
        super().__init__(fd, "r+b")
        self._room = room
        self._left = 0

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]  # all there is
        """Write some of it.

        Raises:
            OSError: ENOSPC when there is no room; else as write(2).
        """
        size = memoryview(data).nbytes
        self._left -= size
        if self._left < 0:
            self._room.check(size)
            self._left = STEP
        return super().write(data)
