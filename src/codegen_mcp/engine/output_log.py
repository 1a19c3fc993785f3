"""The bytes of one task's output in arrival order: the newest in memory, older ones spooled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.task import Stream
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.output_record import Mark, Record, encode
from codegen_mcp.engine.output_spool import Spool

log = structlog.get_logger()

_RECORD_BYTES = 200
"""What a record costs in memory beside its bytes, about."""


class Cursor(Protocol):
    """What the log must know of a reader."""

    @property
    def index(self) -> int:
        """Number of the record that it reads next."""

    def spilled(self, place: Mark) -> None:
        """The record that it reads next lies in the spool now."""


class OutputLog:
    """Appended to by one task, read by any number of cursors."""

    def __init__(self, config: OutputConfig, clock: Clock, new_spool: Callable[[], Spool]) -> None:
        self._config = config
        self._clock = clock
        self._new_spool = new_spool
        self._spilling = asyncio.Lock()
        self._marks: list[Mark] = []
        self._held_from = {Stream.STDOUT: 0, Stream.STDERR: 0}
        self.records: deque[Record] = deque()
        """In memory, oldest first; the last one may still grow."""
        self.first = 0
        """Number of the oldest record in memory; older ones are in the spool."""
        self.length = {Stream.STDOUT: 0, Stream.STDERR: 0}
        """Bytes of each stream since the beginning."""
        self.memory_bytes = 0
        self.spool: Spool | None = None
        self.spool_failed = False
        """Nothing can be spooled any more: what every cursor has had is let go of."""
        self.ended = False
        """Nothing is appended any more."""

    @property
    def total(self) -> int:
        """Bytes of both streams since the beginning."""
        return self.length[Stream.STDOUT] + self.length[Stream.STDERR]

    def append(self, stream: Stream, data: bytes) -> None:
        """Take the next bytes, at most ``event_bytes``."""
        now = self._clock.unix_ms()
        last = self.records[-1] if self.records else None
        if (
            last is not None
            and last.stream is stream
            and len(last.data) + len(data) <= self._config.event_bytes
            and 0 <= now - last.timestamp_ms < self._config.event_delay_s * 1000
        ):
            last.append(data)
        else:
            self.records.append(Record(stream, self.length[stream], data, now))
            self.memory_bytes += _RECORD_BYTES
        self.memory_bytes += len(data)
        self.length[stream] += len(data)

    def oldest(self) -> Mark:
        """Where the oldest bytes that are still held begin."""
        spool = self.spool
        if spool is not None and not spool.empty and not self.spool_failed:
            for mark in self._marks:
                if mark.position >= spool.start:
                    return mark
        return self._memory_mark()

    def place_before(self, wanted: Mapping[Stream, int]) -> Mark:
        """Return the last place behind which all of the wanted bytes lie; they must be held."""
        oldest = self.oldest()
        if oldest.position < 0:
            return oldest
        memory = self._memory_mark()
        if memory.precedes(wanted):
            return memory
        place = oldest
        for mark in self._marks:
            if mark.position >= oldest.position and mark.precedes(wanted):
                place = mark
        return place

    async def spill(self, keep_bytes: int, cursors: Sequence[Cursor]) -> None:
        """Move the oldest records out of memory until ``keep_bytes`` are left in it.

        ``cursors`` is read when the records move, not before.
        """
        async with self._spilling:
            batch, left = [], self.memory_bytes
            for record in self.records:
                if left <= keep_bytes or self._may_grow(record):
                    break
                batch.append(record)
                left -= len(record.data) + _RECORD_BYTES
            if batch and not self.spool_failed:
                await self._spool(batch, cursors)
            if self.spool_failed:
                self.let_go(keep_bytes, cursors)

    def let_go(self, keep_bytes: int, cursors: Sequence[Cursor]) -> None:
        """Without a spool: forget what every cursor has had until ``keep_bytes`` are left."""
        needed = min((cursor.index for cursor in cursors), default=self.first + len(self.records))
        while self.records and self.first < needed and self.memory_bytes > keep_bytes:
            if self._may_grow(self.records[0]):
                break
            self._forget_oldest()

    def drop(self) -> None:
        """Free memory and disk."""
        while self.records:
            self._forget_oldest()
        if self.spool is not None:
            self.spool.drop()

    async def _spool(self, batch: list[Record], cursors: Sequence[Cursor]) -> None:
        if self.spool is None:
            self.spool = self._new_spool()
        spool, position = self.spool, self.spool.end
        block, positions = encode(batch, position)
        try:
            await spool.append(block)
        except OSError as error:
            log.warning("task.output_spool_failed", error=str(error))
            self.spool_failed = True
        finally:
            if spool.end > position:
                self._marks.append(replace(self._memory_mark(), position=position))
                for place in positions:
                    for cursor in cursors:
                        if cursor.index == self.first:
                            cursor.spilled(replace(self._memory_mark(), position=place))
                    self._forget_oldest()

    def _may_grow(self, record: Record) -> bool:
        return record is self.records[-1] and not self.ended

    def _forget_oldest(self) -> None:
        record = self.records.popleft()
        self.first += 1
        self._held_from[record.stream] += len(record.data)
        self.memory_bytes -= len(record.data) + _RECORD_BYTES

    def _memory_mark(self) -> Mark:
        return Mark(self.first, -1, self._held_from[Stream.STDOUT], self._held_from[Stream.STDERR])
