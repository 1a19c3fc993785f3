"""From a run's two pipes to its sink, at the sink's pace."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Stream

CHUNK_BYTES = 64 * 1024
"""A pipe's default capacity (pipe(7))."""
OVER_PAUSE_S = 0.002
"""Between reads of a run that is being ended for its output: it only has to be counted."""


class OutputBudget:
    """Bytes that the two streams of a run may print together."""

    def __init__(self, limit: int, exceeded: Callable[[], None]) -> None:
        self._left = limit
        self._exceeded = exceeded

    def take(self, count: int) -> int:
        """Return how many of ``count`` bytes are within the limit; tells when some are not."""
        granted = min(count, self._left)
        self._left -= granted
        if granted < count:
            self._exceeded()
        return granted


class OutputPump:
    """Reads one pipe to its end. While the sink waits nothing is read, so the program waits too."""

    def __init__(self, fd: int, stream: Stream, sink: OutputSink, budget: OutputBudget) -> None:
        self._fd = fd
        self._stream = stream
        self._sink = sink
        self._budget = budget

    async def run(self) -> None:
        """Pump until end of file; every byte is written to the sink or counted as omitted."""
        while True:
            try:
                data = os.read(self._fd, CHUNK_BYTES)
            except BlockingIOError:
                await self._readable()
                continue
            if not data:
                return
            granted = self._budget.take(len(data))
            try:
                if granted:
                    kept = data if granted == len(data) else data[:granted]
                    await self._sink.write(self._stream, kept)
            except asyncio.CancelledError:
                self._sink.omit(self._stream, len(data))
                raise
            if granted < len(data):
                self._sink.omit(self._stream, len(data) - granted)
                await asyncio.sleep(OVER_PAUSE_S)
            elif len(data) == CHUNK_BYTES:
                await asyncio.sleep(0)  # a program as fast as we are would keep the loop to itself

    def count_rest(self) -> None:
        """Count what is left in the pipe without waiting, when nobody takes it any more."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, CHUNK_BYTES):
                self._sink.omit(self._stream, len(data))

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._fd, _wake, waiter)
        try:
            await waiter
        finally:
            loop.remove_reader(self._fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
