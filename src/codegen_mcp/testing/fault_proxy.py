"""A proxy on loopback that does to chosen HTTP requests what networks and services do.

It stands between a client and a server that speak HTTP/1.1 with Content-Length (S3 does), passes
headers on unchanged but for ``Connection`` (so signatures stay good), and one request per
connection.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_HEAD_BYTES = 64 * 1024
_LINGER = struct.pack("ii", 1, 0)
"""socket(7), SO_LINGER with 0 s: closing sends a reset."""


class Fault(StrEnum):
    """What happens to a request."""

    REFUSE = "refuse"
    """The connection is reset when its head was read; nothing reaches the server."""
    CUT_BODY = "cut_body"
    """The server gets the head and half of the body, then both connections are reset."""
    LOSE_ANSWER = "lose_answer"
    """The server does what was asked; the client's connection is reset instead of an answer."""
    FLIP_ANSWER = "flip_answer"
    """One bit in the middle of the answer's body is another."""
    CUT_ANSWER = "cut_answer"
    """The client gets half of the answer's body, then a reset."""
    STATUS = "status"
    """``status`` is answered; nothing reaches the server."""
    LATE_STATUS = "late_status"
    """The server does what was asked, and ``status`` is answered."""
    HANG = "hang"
    """Nothing is answered until the client goes."""


@dataclass(slots=True, kw_only=True)
class Rule:
    """Faults for the next ``times`` requests that match."""

    fault: Fault
    method: str = ""
    """Empty is any."""
    target: str = ""
    """Regular expression, searched in the request's target (path and query)."""
    times: int = 1_000_000
    status: int = 503
    skip: int = 0
    """How many requests that match go by before."""
    hits: int = 0
    """How many requests it has met."""
    met: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it has met one."""

    def meets(self, method: str, target: str) -> bool:
        """Whether it is this request's turn; counts it."""
        if self.method not in ("", method) or not re.search(self.target, target):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.hits == self.times:
            return False
        self.hits += 1
        self.met.set()
        return True


class FaultProxy:
    """Proxy to one server: ``async with FaultProxy(server.endpoint) as proxy: proxy.endpoint``.

    ``requests`` has the method and target of every request that came.
    """

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        self._server = (address.hostname or "", address.port or 80)
        self._rules: list[Rule] = []
        self._open: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self.endpoint = ""
        self.requests: list[tuple[str, str]] = []

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_HEAD_BYTES)
        self.endpoint = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._listener.wait_closed()

    def add(self, rule: Rule) -> Rule:
        """Add a rule; the first that meets a request decides."""
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget all rules: what comes from now on goes through."""
        self._rules.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._request(reader, writer)
        except asyncio.CancelledError:
            pass  # the proxy is being closed: that is the end of this task
        finally:
            self._open.discard(task)
            with suppress(OSError):
                writer.close()
                await writer.wait_closed()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        self.requests.append((method, target))
        rule = next((one for one in self._rules if one.meets(method, target)), None)
        fault = rule.fault if rule else None
        length = _content_length(head)
        if fault is Fault.REFUSE:
            _reset(writer)
        elif fault is Fault.HANG:
            await reader.read(-1)
        elif rule and fault is Fault.STATUS:
            await reader.readexactly(length)
            await _answer(writer, rule.status)
        else:
            async with self._upstream() as (answers, sender):
                sender.write(_closing(head))
                if fault is Fault.CUT_BODY:
                    sender.write(await reader.readexactly(length // 2))
                    await sender.drain()
                    _reset(writer)
                    _reset(sender)
                    return
                await _copy(reader, sender, length)
                if rule and fault is Fault.LATE_STATUS:
                    await answers.read(-1)
                    await _answer(writer, rule.status)
                elif fault is Fault.LOSE_ANSWER:
                    await answers.read(-1)
                    _reset(writer)
                else:
                    await _pass_answer(answers, writer, fault)

    @asynccontextmanager
    async def _upstream(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(*self._server, limit=_HEAD_BYTES)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def _closing(head: bytes) -> bytes:
    """The same head, for a connection with this one request."""
    lines = head[:-4].split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int) -> None:
    while count:
        data = await reader.read(min(count, _HEAD_BYTES))
        if not data:
            raise asyncio.IncompleteReadError(b"", count)
        count -= len(data)
        writer.write(data)
        await writer.drain()


async def _pass_answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault | None
) -> None:
    if fault in (Fault.CUT_ANSWER, Fault.FLIP_ANSWER):
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        length = _content_length(head)
        await _copy(reader, writer, length // 2)
        if fault is Fault.CUT_ANSWER:
            _reset(writer)
            return
        if length:
            writer.write(bytes([(await reader.readexactly(1))[0] ^ 1]))
    while data := await reader.read(_HEAD_BYTES):
        writer.write(data)
        await writer.drain()


async def _answer(writer: asyncio.StreamWriter, status: int) -> None:
    writer.write(b"HTTP/1.1 %d Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    writer.transport.abort()
