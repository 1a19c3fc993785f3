"""A proxy on loopback for any TCP protocol, whose wire can be cut, frozen and mended."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Self

_RESET = struct.pack("ii", 1, 0)
"""socket(7), SO_LINGER with 0 s: closing sends a reset."""
_PIECE = 64 * 1024


class CutProxy:
    """An async context manager; ``port`` leads to the port that it was given.

    Attributes:
        connections: How many were accepted so far.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def cut(self) -> None:
        """Reset every connection, and each new one."""
        self._refusing = True
        for writer in list(self._open):
            _reset(writer)

    async def reset(self) -> None:
        """Reset every connection; new ones are served."""
        for writer in list(self._open):
            _reset(writer)

    def freeze(self) -> None:
        """Pass nothing on, in silence: as a network that drops everything."""
        self._flowing.clear()

    def mend(self) -> None:
        """Serve again."""
        self._refusing = False
        self._flowing.set()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        self._open.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            if self._refusing:
                return
            back, other = await asyncio.open_connection("127.0.0.1", self._target)
            self._open.add(other)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, other))
                group.create_task(self._pump(back, writer))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for one in (writer, other):
                if one is not None:
                    self._open.discard(one)
                    _reset(one)
            self._handlers.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE):
            await self._flowing.wait()
            writer.write(piece)
            await writer.drain()
        raise ConnectionResetError  # one end is closed: so is the other


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        found = writer.get_extra_info("socket")
        if found is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
