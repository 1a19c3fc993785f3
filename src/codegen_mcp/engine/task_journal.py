"""The file of a session's task records: appended to, read back by place, and compacted.

Written without fsync: it is for the end of the worker's process, which the page cache survives;
a session does not survive the end of its machine.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from codegen_mcp.core.limits import KIB, MIB
from codegen_mcp.engine.durable import reserve
from codegen_mcp.engine.task import Place, Task
from codegen_mcp.engine.uninterrupted import settled

log = structlog.get_logger()

FILE_NAME = "tasks.jsonl"
RESERVE_BYTES = 16 * KIB
"""Allocated ahead of the last line."""
SLACK_BYTES = 1 * MIB
"""How much of what nobody needs may lie in the file beside twice what is needed."""


@dataclass(frozen=True, slots=True)
class Line:
    """A whole line as found in the file."""

    place: Place
    data: bytes


class TaskJournal:
    """One append-only file of lines; every method but ``compact`` is quick."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        self._late: list[bytes] | None = None
        self._failed = False
        self._reserved = 0

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._size

    @property
    def exists(self) -> bool:
        """Whether anything was ever written."""
        return self._fd >= 0

    def load(self) -> Iterator[Line]:
        """Open the file of a dead worker; a torn last line is cut off.

        Raises:
            OSError: It cannot be read.
        """
        if not self._path.exists():
            return
        self._open()
        whole = 0
        with open(os.dup(self._fd), "rb") as file:
            file.seek(0)
            for data in file:
                if not data.endswith(b"\n"):
                    break
                yield Line(Place(whole, len(data)), data)
                whole += len(data)
        self._size = whole
        os.ftruncate(self._fd, whole)

    def append(self, line: bytes) -> Place | None:
        """Write a line; None when it could not be (logged once until it works again)."""
        try:
            if self._fd < 0:
                self._open()
            self._reserve()
            place = Place(self._size, len(line))
            self._size += _write_whole(self._fd, line, self._size)
        except OSError as error:
            if not self._failed:
                log.warning("task.journal_failed", error=str(error))
            self._failed = True
            return None
        self._failed = False
        if self._late is not None:
            self._late.append(line)
        return place

    def read(self, place: Place) -> bytes:
        """Return the line at ``place``. OSError when it cannot be read."""
        data = os.pread(self._fd, place.length, place.offset)
        if len(data) != place.length:
            raise OSError("the task journal is shorter than it was")
        return data

    def needs_compaction(self, live_bytes: int) -> bool:
        """Whether most of the file is of no use any more."""
        return self._late is None and self._size > 2 * live_bytes + SLACK_BYTES

    async def compact(self, head: bytes, tasks: Callable[[], Iterable[Task]]) -> None:
        """Keep ``head``, the lines of ``tasks`` and what is appended meanwhile.

        Every task's place is put right, also when this is cancelled. Where the disk does not
        allow it, the file stays as it is.
        """
        start, self._late = self._size, []
        places = tuple(task.place for task in tasks() if task.place is not None)
        temporary = self._path.with_suffix(".new")
        job = asyncio.get_running_loop().run_in_executor(
            None, _copy, self._fd, temporary, head, places
        )
        cancelled = await settled(job)
        late, self._late = self._late, None
        try:
            fd, size, moved = job.result()
            shift = size - start
            try:
                for line in late:
                    size += _write_whole(fd, line, size)
                os.rename(temporary, self._path)
            except OSError:
                os.close(fd)
                raise
            os.close(self._fd)
            self._fd, self._size, self._reserved = fd, size, 0
            for task in tasks():
                place = task.place
                if place is not None:
                    later = Place(place.offset + shift, place.length)
                    task.place = later if place.offset >= start else moved[place]
        except OSError as error:
            log.warning("task.journal_not_compacted", error=str(error))
            with suppress(OSError):
                temporary.unlink()
        if cancelled is not None:
            raise cancelled

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _reserve(self) -> None:
        """Have room for the lines to come, so that a disk which fills up refuses none at first."""
        if self._size + RESERVE_BYTES // 4 > self._reserved and reserve(
            self._fd, self._size, RESERVE_BYTES
        ):
            self._reserved = self._size + RESERVE_BYTES

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)


def _write_whole(fd: int, data: bytes, position: int) -> int:
    written = os.pwrite(fd, data, position)
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], position + written)
    return written


def _copy(
    source: int, target: Path, head: bytes, places: tuple[Place, ...]
) -> tuple[int, int, dict[Place, Place]]:
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(target, flags, 0o600)
    try:
        size = _write_whole(fd, head, 0)
        moved = {}
        for place in places:
            moved[place] = Place(size, place.length)
            size += _write_whole(fd, os.pread(source, place.length, place.offset), size)
    except OSError:
        os.close(fd)
        raise
    return fd, size, moved
