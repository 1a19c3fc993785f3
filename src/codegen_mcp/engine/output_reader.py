"""A reader of one task's output: where it stands, and what it is given next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.limits import KIB
from codegen_mcp.core.task import Stream
from codegen_mcp.engine.base import OutputEvent
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.output_log import OutputLog
from codegen_mcp.engine.output_record import Mark, Record, decode
from codegen_mcp.engine.output_spool import OutputDropped

_FETCH_BYTES = 256 * KIB


class OutputReader:
    """Follows a log. One coroutine reads: ``take`` until None, then ``fetch`` or ``wait``.

    The first piece is given at once; the next ones when 10 ms have passed or 64 KiB have come
    together, whichever is first. The end waits for nothing.
    """

    __slots__ = (
        "_config",
        "_fetched",
        "_log",
        "_loop",
        "_moved",
        "_next",
        "_place",
        "_ready_at",
        "_timer",
        "_waiter",
        "index",
    )

    def __init__(
        self,
        config: OutputConfig,
        log: OutputLog,
        wanted: dict[Stream, int],
        place: Mark,
        moved: Callable[[], None],
    ) -> None:
        self._config = config
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._next = wanted
        self._place = place
        self._moved = moved
        self._fetched: deque[Record] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ready_at = 0.0
        self.index = place.index
        """Number of the record that is read next."""

    @property
    def consumed(self) -> int:
        """Bytes of both streams behind it."""
        return self._next[Stream.STDOUT] + self._next[Stream.STDERR]

    @property
    def behind(self) -> bool:
        """Whether what comes next must be fetched from the spool."""
        return not self._fetched and self.index < self._log.first

    def take(self) -> OutputEvent | None:
        """Return the next piece in arrival order; None when nothing is due now."""
        while self._fetched:
            event = self._piece(self._fetched.popleft())
            self.index += 1
            if event is not None:
                return event
        records = self._log.records
        while 0 <= (at := self.index - self._log.first) < len(records):
            if at == len(records) - 1:
                return None if self._held_back() else self._piece(records[at])
            event = self._piece(records[at])
            self.index += 1
            if event is not None:
                return event
        return None

    async def fetch(self) -> None:
        """Read the next pieces from the spool.

        Raises:
            WrongState: They were dropped meanwhile (OUTPUT_EXPIRED).
        """
        place, spool = self._place, self._log.spool
        try:
            if spool is None:
                raise OutputDropped
            block = await asyncio.to_thread(spool.read, place.position, _FETCH_BYTES)
        except OutputDropped:
            raise WrongState(
                "output that was not read in time is not held any more (the session's share of "
                "the worker's disk is used up); take head and tail from the task's result",
                reason="OUTPUT_EXPIRED",
            ) from None
        pieces, count = decode(block)
        offsets = {Stream.STDOUT: place.stdout, Stream.STDERR: place.stderr}
        for stream, data, timestamp_ms in pieces:
            self._fetched.append(Record(stream, offsets[stream], data, timestamp_ms))
            offsets[stream] += len(data)
        self._place = Mark(
            place.index + len(pieces),
            place.position + count,
            offsets[Stream.STDOUT],
            offsets[Stream.STDERR],
        )

    def spilled(self, place: Mark) -> None:
        """Go on in the spool: the record that is read next lies there now."""
        self._place = place

    async def wait(self) -> None:
        """Return when there may be more: output that is due, or ``wake``."""
        self._waiter = self._loop.create_future()
        if self._pending:
            self._wake_when_due()
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def written(self) -> None:
        """The log grew: wake now, or when the next piece is due."""
        if self._waiter is None:
            return
        if self._pending >= self._config.event_bytes or self._loop.time() >= self._ready_at:
            self.wake()
        elif self._timer is None:
            self._wake_when_due()

    def wake(self) -> None:
        """End ``wait`` now."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wake_when_due(self) -> None:
        self._timer = self._loop.call_at(self._ready_at, self.wake)

    @property
    def _pending(self) -> int:
        return self._log.total - self.consumed

    def _held_back(self) -> bool:
        if self._log.ended or self._pending >= self._config.event_bytes:
            return False
        return self._loop.time() < self._ready_at

    def _piece(self, record: Record) -> OutputEvent | None:
        start = self._next[record.stream] - record.offset
        if start >= len(record.data):
            return None
        offset = record.offset + start
        data = bytes(memoryview(record.data)[start:]) if start else bytes(record.data)
        self._next[record.stream] = offset + len(data)
        self._ready_at = self._loop.time() + self._config.event_delay_s
        self._moved()
        return OutputEvent(
            stream=record.stream, offset=offset, data=data, timestamp_ms=record.timestamp_ms
        )
