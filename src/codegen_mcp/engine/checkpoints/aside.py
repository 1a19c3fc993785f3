"""Copies of files that changed while a checkpoint was made, taken while nothing runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from codegen_mcp.engine.checkpoints.room import Room
from codegen_mcp.engine.checkpoints.source_files import Read, Segments, data_segments

SMALL_BYTES = 64 * 1024
"""Kept in memory; longer ones in a file without a name."""
MEMORY_BYTES = 16 * 1024 * 1024
"""All small copies together; beyond, they go to the file as well."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy."""

    found: os.stat_result
    segments: Segments | None
    """None: the file has no holes."""
    offset: int
    """In the scratch file; -1 when ``data`` has it."""
    data: bytes


class Aside:
    """Holds copies; blocking, for threads."""

    def __init__(self, scratch: Callable[[], int], room: Room | None = None) -> None:
        """Hold none.

        Args:
            scratch: Opens a file without a name when one is needed; it is closed here.
            room: What that file may take of the disk.
        """
        self._open_scratch = scratch
        self._scratch = -1
        self._room = room
        self._end = 0
        self._memory = 0

    def take(self, fd: int, found: os.stat_result) -> Copy:
        """Copy an open file's bytes now, holes left out. OSError where the disk is full."""
        segments = data_segments(fd, found)
        size = found.st_size
        if segments is None and size <= SMALL_BYTES and self._memory + size <= MEMORY_BYTES:
            data = _read(fd, size)
            self._memory += len(data)
            return Copy(found, None, -1, data)
        offset = self._end
        for start, length in ((0, size),) if segments is None else segments:
            self._append(fd, start, length)
        return Copy(found, segments, offset, b"")

    def reader(self, copy: Copy) -> Read:
        """Read a copy as if it were the file, holes as zeros."""
        if copy.offset < 0:
            return _Memory(copy.data).read
        return _Stretches(self._scratch, copy).read

    def close(self) -> None:
        """Let go of all copies; idempotent."""
        if self._scratch >= 0:
            os.close(self._scratch)
            self._scratch = -1

    def _append(self, fd: int, start: int, length: int) -> None:
        if self._room is not None:
            self._room.check(length)
        if self._scratch < 0:
            self._scratch = self._open_scratch()
        os.lseek(self._scratch, self._end, os.SEEK_SET)
        left = length
        while left:
            # To a regular file this copies in the kernel (sendfile(2), Linux 2.6.33).
            done = os.sendfile(self._scratch, fd, start + length - left, left)
            if not done:
                break  # shorter than it was: nothing runs, so only a file call can have done it
            left -= done
        if left:
            os.ftruncate(self._scratch, self._end + length)
        self._end += length


class _Memory:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        self._at += len(piece)
        return piece


class _Stretches:
    def __init__(self, fd: int, copy: Copy) -> None:
        self._fd = fd
        self._size = copy.found.st_size
        self._at = 0
        self._map: list[tuple[int, int, int]] = []
        offset = copy.offset
        for start, length in ((0, self._size),) if copy.segments is None else copy.segments:
            self._map.append((start, length, offset))
            offset += length

    def read(self, count: int) -> bytes:
        count = min(count, self._size - self._at)
        while self._map and self._at >= self._map[0][0] + self._map[0][1]:
            self._map.pop(0)
        if not self._map or self._at < self._map[0][0]:
            ahead = (self._map[0][0] if self._map else self._size) - self._at
            count = min(count, ahead)
            self._at += count
            return bytes(count)
        start, length, offset = self._map[0]
        count = min(count, start + length - self._at)
        data = os.pread(self._fd, count, offset + self._at - start)
        self._at += len(data)
        return data


def _read(fd: int, size: int) -> bytes:
    pieces = []
    while size:
        data = os.read(fd, size)
        if not data:
            break
        pieces.append(data)
        size -= len(data)
    return b"".join(pieces)
