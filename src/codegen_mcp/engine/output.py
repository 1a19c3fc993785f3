"""What a task prints: every byte in order, for readers now and later, in bounded memory.

``OutputJournal`` is the sink of a task's runs. A reader (``output_reader.py``) follows from any
offset that is still held. One that is slow holds the writer back, and so the code, whose pipe
fills up; without a reader the output goes on to its limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import InvalidRequest, WrongState
from codegen_mcp.core.task import Stream
from codegen_mcp.engine.head_tail import HeadTail
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.output_log import OutputLog
from codegen_mcp.engine.output_reader import OutputReader
from codegen_mcp.engine.output_spool import Spool
from codegen_mcp.tools.base import CapturedOutput


class OutputJournal:
    """Implements ``core.output.OutputSink`` for one task; ``limit_bytes`` bounds both streams."""

    def __init__(
        self, config: OutputConfig, clock: Clock, new_spool: Callable[[], Spool], limit_bytes: int
    ) -> None:
        self._config = config
        self._limit_bytes = limit_bytes
        self._log = OutputLog(config, clock, new_spool)
        self._kept: dict[Stream, HeadTail] = {}
        self._readers: list[OutputReader] = []
        self._room = asyncio.Event()
        self._released = False
        self._dropped = False
        self._captured = NOTHING

    @property
    def readers(self) -> int:
        """Readers attached now."""
        return len(self._readers)

    @property
    def written(self) -> bool:
        """Whether anything was ever printed."""
        return self._captured is not NOTHING or bool(self._kept)

    @property
    def memory_bytes(self) -> int:
        """Memory that readable output takes now."""
        return self._log.memory_bytes

    async def write(self, stream: Stream, data: bytes) -> None:
        """Take the next bytes; waits while the slowest attached reader is a window behind.

        When it is cancelled, nothing of ``data`` was taken.
        """
        if self._log.memory_bytes > self._config.memory_bytes:
            await self._log.spill(self._config.memory_bytes // 2, self._readers)
        if self._too_far_ahead():
            await self._wait_for_room()
        if self._log.ended:
            return
        room = max(self._limit_bytes - self._log.total, 0)
        kept = self._kept_of(stream)
        if len(data) > room:
            kept.omit(len(data) - room)
            data = data[:room]
            if not data:
                return
        kept.add(data)
        piece = self._config.event_bytes
        for start in range(0, len(data), piece):
            self._log.append(stream, data[start : start + piece])
        for reader in self._readers:
            reader.written()

    def omit(self, stream: Stream, count: int) -> None:
        """Count bytes that are not kept."""
        self._kept_of(stream).omit(count)

    def release(self) -> None:
        """Hold the writer back no more: its run is being ended, what its pipes hold is little."""
        self._released = True
        self._room.set()

    def end(self) -> None:
        """Nothing more is written; readers may come to their end."""
        self._captured = self.captured()
        self._kept.clear()
        self._log.ended = True
        if self._log.spool is not None:
            self._log.spool.close()
        self.release()
        self.wake()

    def captured(self) -> CapturedOutput:
        """Return head and tail of both streams so far; after the end only their counts."""
        if not self._kept:
            return self._captured
        out = self._kept_of(Stream.STDOUT).capture()
        err = self._kept_of(Stream.STDERR).capture()
        return CapturedOutput(
            stdout=out.data,
            stderr=err.data,
            stdout_bytes=out.total,
            stderr_bytes=err.total,
            stdout_omitted=out.omitted,
            stderr_omitted=err.omitted,
        )

    def printed(self, stream: Stream) -> int:
        """Bytes of the stream so far, omitted ones included."""
        if stream in self._kept:
            return self._kept[stream].total
        counts = self._captured
        return counts.stdout_bytes if stream is Stream.STDOUT else counts.stderr_bytes

    def logged(self, stream: Stream) -> int:
        """Bytes of the stream so far that readers can have."""
        return self._log.length[stream]

    def attach(self, stdout_offset: int | None, stderr_offset: int | None) -> OutputReader:
        """Add a reader; None is the first byte that is still held.

        Raises:
            InvalidRequest: An offset is negative or beyond what was printed.
            WrongState: Bytes from the offset on are not held any more (OUTPUT_EXPIRED).
        """
        held = self._log.oldest()
        wanted = {
            Stream.STDOUT: self._checked(Stream.STDOUT, stdout_offset, held.stdout),
            Stream.STDERR: self._checked(Stream.STDERR, stderr_offset, held.stderr),
        }
        place = self._log.place_before(wanted)
        reader = OutputReader(self._config, self._log, wanted, place, self._moved)
        self._readers.append(reader)
        return reader

    def detach(self, reader: OutputReader) -> None:
        """Forget a reader; idempotent."""
        if reader in self._readers:
            self._readers.remove(reader)
            self._room.set()
            if self._dropped:
                self.drop()

    def wake(self) -> None:
        """Wake every reader, whatever it waits for."""
        for reader in self._readers:
            reader.wake()

    async def settle(self) -> None:
        """Move what is in memory to the spool; the task is over."""
        await self._log.spill(0, self._readers)
        if self._log.spool is not None:
            self._log.spool.close()

    def drop(self) -> None:
        """Free all of it, once no reader is left."""
        self._dropped = True
        if not self._readers:
            self._log.drop()

    def _kept_of(self, stream: Stream) -> HeadTail:
        kept = self._kept.get(stream)
        if kept is None:
            kept = HeadTail(self._config.capture_bytes, self._config.capture_text_bytes)
            self._kept[stream] = kept
        return kept

    def _moved(self) -> None:
        if not self._room.is_set() and (self._log.spool_failed or not self._too_far_ahead()):
            self._room.set()

    async def _wait_for_room(self) -> None:
        """Wait for the slowest reader.

        One that takes nothing at all slows the code down to a piece every few seconds; it cannot
        stop it, nor hold back what a run that has ended left in its pipes. Only where the disk
        cannot take what is not in memory is there no other way.
        """
        failed = self._log.spool_failed
        with suppress(TimeoutError):
            async with asyncio.timeout(None if failed else self._config.patience_s):
                while self._too_far_ahead():
                    self._room.clear()
                    await self._room.wait()
                    if self._log.spool_failed:
                        self._log.let_go(self._config.memory_bytes // 2, self._readers)

    def _too_far_ahead(self) -> bool:
        if self._released or not self._readers:
            return False
        if self._log.spool_failed and self._log.memory_bytes > self._config.memory_bytes:
            return True
        lag = self._log.total - min(reader.consumed for reader in self._readers)
        return lag >= self._config.window_bytes

    def _checked(self, stream: Stream, offset: int | None, held_from: int) -> int:
        if offset is None:
            return held_from
        printed = self._log.length[stream]
        if not 0 <= offset <= printed:
            raise InvalidRequest(
                f"{stream}_offset {offset} is not between 0 and the {printed} bytes printed so "
                "far; pass the offset behind the last byte that you have",
                metadata={"stream": str(stream), "logged_bytes": str(printed)},
            )
        if offset < held_from:
            raise WrongState(
                f"{stream} before byte {held_from} is not held any more, {offset} was asked for; "
                f"attach from {held_from}, or take head and tail from the task's result",
                reason="OUTPUT_EXPIRED",
                metadata={"stream": str(stream), "first_offset": str(held_from)},
            )
        return offset


NOTHING = CapturedOutput(
    stdout=b"", stderr=b"", stdout_bytes=0, stderr_bytes=0, stdout_omitted=0, stderr_omitted=0
)
