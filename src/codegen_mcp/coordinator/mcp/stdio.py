"""MCP over the process's own standard streams, read and written by threads that never hold it up.

The library's own transport waits for its threads when it is cancelled: one that reads a terminal,
or writes to a client that has stopped reading, would keep a signal from ending the process. Those
here are daemons, which the end of the process takes along.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, BinaryIO, cast

import anyio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

MAX_LINE_BYTES = 32 * 1024 * 1024
"""Of one message; a longer one ends the connection, for nothing after it could be told apart."""


async def serve_stdio(server: Server[Any]) -> None:
    """Serve the one client on the standard streams until it closes its end."""
    with _claimed() as (source, sink):
        async with (
            _Lines(source) as lines,
            _Writer(sink) as writer,
            stdio_server(
                # Of a file it only iterates, writes and flushes.
                cast("anyio.AsyncFile[str]", lines),
                cast("anyio.AsyncFile[str]", writer),
            ) as (read, write),
        ):
            await server.run(read, write, server.create_initialization_options())


@contextmanager
def _claimed() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Take standard input and output for the protocol alone.

    Meanwhile descriptor 0 is empty and 1 is standard error: what a library or a child prints
    does not get between the messages.
    """
    sys.stdout.flush()
    kept = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    source = os.fdopen(os.dup(kept[0]), "rb", closefd=False)
    sink = os.fdopen(os.dup(kept[1]), "wb", buffering=0, closefd=False)
    try:
        yield source, cast("BinaryIO", sink)
    finally:
        with suppress(OSError):
            os.dup2(kept[0], 0)
        with suppress(OSError):
            os.dup2(kept[1], 1)


class _Lines:
    """Lines of a blocking file, by a thread that reads one ahead."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(2)

    async def __aenter__(self) -> _Lines:
        threading.Thread(target=self._read, name="mcp-stdin", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave the thread where it waits: it holds nothing, and the process's end takes it."""

    def _read(self) -> None:
        while True:
            self._room.acquire()
            try:
                line = self._source.readline(MAX_LINE_BYTES)
            except (OSError, ValueError):
                line = b""
            if len(line) >= MAX_LINE_BYTES:
                line = b""
            try:
                self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
            except RuntimeError:  # the loop is closed: nobody reads any more
                return
            if not line:
                return

    async def __aiter__(self) -> AsyncIterator[str]:
        while line := await self._lines.get():
            self._room.release()
            yield line.decode("utf-8", "replace")


class _Writer:
    """Writes text to a blocking file, by a thread; at most one write is under way."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._given: list[tuple[bytes, asyncio.Future[None]]] = []
        self._news = threading.Semaphore(0)

    async def __aenter__(self) -> _Writer:
        threading.Thread(target=self._work, name="mcp-stdout", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._news.release()

    async def write(self, text: str) -> None:
        """Write all of it.

        Raises:
            anyio.ClosedResourceError: The client has closed its end.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        self._given.append((text.encode("utf-8", "surrogatepass"), done))
        self._news.release()
        try:
            await done
        except OSError as error:
            raise anyio.ClosedResourceError from error

    async def flush(self) -> None:
        """Nothing is held back."""

    def _work(self) -> None:
        while True:
            self._news.acquire()
            if not self._given:
                return
            data, done = self._given.pop(0)
            error: OSError | None = None
            try:
                view = memoryview(data)
                while view:
                    view = view[self._sink.write(view) :]
            except OSError as raised:
                error = raised
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(_settle, done, error)


def _settle(done: asyncio.Future[None], error: OSError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


@asynccontextmanager
async def connected(server: Server[Any]) -> AsyncIterator[asyncio.Task[None]]:
    """Serve the standard streams during the block; yields the task that ends with the client."""
    task = asyncio.create_task(serve_stdio(server), name="mcp-stdio")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
