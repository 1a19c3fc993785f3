"""Output that is too long for memory: appended to files of the session's directory.

A session's spools share one budget; the oldest output is dropped first. Files are the worker's
own (0600, outside the session's volume) and mean nothing after a restart.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.uninterrupted import settled

_KEPT_WHILE_OPEN = 8
"""Newest segments of a running task that are never dropped. They hold its readers' window, of
which single bytes that alternate between the streams make thirteen times its size."""


class OutputDropped(Exception):
    """What was asked for was dropped to keep within the budget."""


@dataclass(slots=True)
class _Segment:
    path: Path
    start: int
    end: int


class SpoolDirectory:
    """The spools of one session, oldest first, and their common budget."""

    def __init__(self, directory: Path, config: OutputConfig) -> None:
        self._directory = directory / "output"
        self.config = config
        self._spools: dict[int, Spool] = {}
        self._numbers = itertools.count()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes in files now."""
        return self._used_bytes

    def new(self) -> Spool:
        """Make an empty spool; no file yet."""
        return Spool(self, next(self._numbers))

    def path(self, name: str) -> Path:
        """Return the file of that name."""
        return self._directory / name

    def grew(self, spool: Spool, count: int) -> None:
        """Count what a spool wrote."""
        self._spools[spool.number] = spool
        self._used_bytes += count
        self.keep_budget()

    def keep_budget(self) -> None:
        """Drop the oldest output until the rest fits."""
        for oldest in self._in_order():
            while self._used_bytes > self.config.spool_bytes and oldest.drop_oldest():
                pass

    def shrank(self, spool: Spool, count: int) -> None:
        """Count what a spool dropped."""
        self._used_bytes -= count
        if spool.empty:
            self._spools.pop(spool.number, None)

    def clear(self) -> None:
        """Drop everything, also what a dead worker left."""
        for spool in self._in_order():
            spool.drop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _in_order(self) -> Iterator[Spool]:
        yield from [self._spools[number] for number in sorted(self._spools)]


class Spool:
    """One task's output on disk: an append-only run of bytes that may lose its beginning."""

    def __init__(self, directory: SpoolDirectory, number: int) -> None:
        self.number = number
        self._closed = False
        self._written: _Segment | None = None
        """Being written to now, which keeps it from being dropped."""
        self._directory = directory
        self._segments: deque[_Segment] = deque()
        self._end = 0

    @property
    def start(self) -> int:
        """Position of the first byte still held."""
        return self._segments[0].start if self._segments else self._end

    @property
    def end(self) -> int:
        """Position behind the last byte."""
        return self._end

    @property
    def empty(self) -> bool:
        """Whether it holds nothing."""
        return not self._segments

    async def append(self, data: bytes) -> None:
        """Write a block that is never divided between two files. One call at a time.

        When it is cancelled, the block is written all the same: look at ``end``.

        Raises:
            OSError: It could not be written; the spool is as before.
        """
        config = self._directory.config
        last = self._segments[-1] if self._segments else None
        if last is None or last.end - last.start >= config.segment_bytes:
            path = self._directory.path(f"{self.number}-{self._end}.log")
            last = _Segment(path, self._end, self._end)
        self._written = last
        job = asyncio.get_running_loop().run_in_executor(
            None, _write, last.path, data, last.end - last.start, config.disk_reserve_bytes
        )
        cancelled = await settled(job)
        self._written = None
        job.result()
        if last.end == last.start:
            self._segments.append(last)
        last.end += len(data)
        self._end = last.end
        self._directory.grew(self, len(data))
        if cancelled is not None:
            raise cancelled

    def read(self, position: int, count: int) -> bytes:
        """Read up to ``count`` bytes from ``position``, not beyond one file. May block.

        Raises:
            OutputDropped: They are not held any more.
        """
        for segment in tuple(self._segments):
            if segment.start <= position < segment.end:
                break
        else:
            raise OutputDropped
        try:
            fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise OutputDropped from error
        try:
            return os.pread(fd, min(count, segment.end - position), position - segment.start)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Its task is over: all of it may be dropped for newer output."""
        self._closed = True
        self._directory.keep_budget()

    def drop_oldest(self) -> bool:
        """Drop the oldest file; False when nothing of it may be dropped."""
        if len(self._segments) <= (0 if self._closed else _KEPT_WHILE_OPEN):
            return False
        if self._segments[0] is self._written:
            return False
        segment = self._segments.popleft()
        segment.path.unlink(missing_ok=True)
        self._directory.shrank(self, segment.end - segment.start)
        return True

    def drop(self) -> None:
        """Drop all of it."""
        self._closed = True
        while self.drop_oldest():
            pass


def _write(path: Path, data: bytes, position: int, reserve_bytes: int) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    room = os.statvfs(path.parent)
    if room.f_bavail * room.f_frsize < reserve_bytes + len(data):
        raise OSError(errno.ENOSPC, "too little free space on the host to spool output")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view, at = memoryview(data), position
        while view:
            count = os.pwrite(fd, view, at)
            view, at = view[count:], at + count
    except OSError:
        os.ftruncate(fd, position)
        raise
    finally:
        os.close(fd)
