"""The fetcher's only way out: an HTTP proxy on a Unix socket for one package index.

``CONNECT host:port`` for https, absolute-URI GET and HEAD for indexes that speak plain http.
Everything else is refused with a reason. One proxy serves one fetch and is closed with it, so
its counters are that fetch's evidence. RFC 9110 section 9.3.6, RFC 9112 section 3.2.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import structlog

from codegen_mcp.core.limits import KIB
from codegen_mcp.languages.python.index_rules import EgressRules, Refused

_log = structlog.get_logger()

MAX_HEADER_BYTES = 16 * KIB
_CHUNK = 64 * KIB
_HOP_HEADERS = {b"connection", b"proxy-connection", b"keep-alive", b"proxy-authorization", b"host"}
_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    408: "Request Timeout",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
}


@dataclass(slots=True)
class ProxyCounters:
    """What one fetch did on the network."""

    connections: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(destination, why); at most 100."""
    unreachable: list[tuple[str, str]] = field(default_factory=list)
    """(destination, error) where the server did not answer; at most 100."""
    over_limit: bool = False
    """The byte limit was met."""


class _Answer(Exception):
    """End the request with this status."""

    def __init__(self, status: int, reason: str, target: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.target = target


class IndexProxy:
    """Serves one fetch; an async context manager that owns its connections."""

    def __init__(
        self,
        rules: EgressRules,
        socket_path: Path,
        *,
        max_bytes: int,
        owner: tuple[int, int] | None = None,
        header_timeout_s: float = 10.0,
        connect_timeout_s: float = 10.0,
        idle_timeout_s: float = 60.0,
        max_connections: int = 64,
    ) -> None:
        """Prepare; ``owner`` (uid, gid) is who may connect, None the worker's own user."""
        self.counters = ProxyCounters()
        self._rules = rules
        self._path = socket_path
        self._max_bytes = max_bytes
        self._owner = owner
        self._header_timeout_s = header_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._max_connections = max_connections
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        listener = _listen(self._path)
        if self._owner is not None:
            os.chown(self._path, *self._owner)
        os.chmod(self._path, 0o600)
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listener, limit=MAX_HEADER_BYTES
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection in the task that the server made for it, which we own."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went away
        except asyncio.CancelledError:
            pass  # only __aexit__ cancels, and asyncio's server would report it as a fault
        finally:
            self._tasks.discard(task)
            await _close(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            crowded = len(self._tasks) > self._max_connections
            head = await self._read_head(reader)
            if crowded:
                raise _Answer(429, f"more than {self._max_connections} connections at once")
            method, target, headers = _parse(head)
            if method == b"CONNECT":
                await self._tunnel(target, reader, writer)
            elif method in (b"GET", b"HEAD"):
                await self._forward(method, target, headers, reader, writer)
            else:
                raise _Answer(405, "only CONNECT, GET and HEAD are served", target)
        except _Answer as answer:
            _remember(self.counters.refused, answer.target, answer.reason)
            _log.info("packages.egress_refused", target=answer.target, reason=answer.reason)
            body = (answer.reason + "\n").encode("ascii", "replace")
            writer.write(
                f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\n"
                "Content-Type: text/plain\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle_timeout_s):
                    await writer.drain()

    async def _read_head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._header_timeout_s):
                return await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise _Answer(431, f"request header above {MAX_HEADER_BYTES} bytes") from None
        except TimeoutError:
            raise _Answer(408, f"no request within {self._header_timeout_s:g} s") from None

    async def _tunnel(
        self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        host, colon, port = target.rpartition(":")
        if not colon or not port.isdigit() or not host:
            raise _Answer(400, "CONNECT needs host:port", target)
        up_reader, up_writer = await self._connect(host.strip("[]"), int(port), target)
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await self._pump(reader, writer, up_reader, up_writer)
        finally:
            await _close(up_writer)

    async def _forward(
        self,
        method: bytes,
        target: str,
        headers: list[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            url = urlsplit(target)
            port = url.port or 80
        except ValueError:
            raise _Answer(400, "malformed URL", target) from None
        if url.scheme != "http" or not url.hostname:
            raise _Answer(400, "only absolute http URLs are forwarded", target)
        up_reader, up_writer = await self._connect(url.hostname, port, target)
        try:
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            host = url.netloc.rpartition("@")[2]
            kept = [line for line in headers if line.partition(b":")[0].lower() not in _HOP_HEADERS]
            head = [method + b" " + path.encode("latin-1") + b" HTTP/1.1"]
            head += [b"Host: " + host.encode("latin-1"), *kept, b"Connection: close", b"", b""]
            up_writer.write(b"\r\n".join(head))
            writer.write(await self._answer_head(up_reader, target))
            await self._pump(reader, writer, up_reader, up_writer)
        finally:
            await _close(up_writer)

    async def _answer_head(self, up_reader: asyncio.StreamReader, target: str) -> bytes:
        """Read the server's header and say in it that this connection serves no other request.

        Not every server repeats the ``close`` it was asked for, and a client that reuses the
        connection would find it gone.
        """
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                head = await up_reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
            _remember(self.counters.unreachable, target, "no HTTP answer")
            raise _Answer(502, "the server gave no HTTP answer", target) from None
        self._count(into=len(head))
        status, *headers = head[:-4].split(b"\r\n")
        kept = [line for line in headers if line.partition(b":")[0].lower() not in _HOP_HEADERS]
        return b"\r\n".join([status, *kept, b"Connection: close", b"", b""])

    async def _connect(
        self, host: str, port: int, target: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        error: Exception = OSError("no address")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                for address in await self._rules.resolve(host, port):
                    try:
                        streams = await asyncio.open_connection(address, port)
                    except OSError as failed:
                        error = failed
                        continue
                    self.counters.connections += 1
                    return streams
        except Refused as refused:
            raise _Answer(403, str(refused), target) from None
        except (OSError, TimeoutError) as failed:
            error = failed
        _remember(self.counters.unreachable, f"{host}:{port}", str(error) or type(error).__name__)
        raise _Answer(502, f"{host}:{port} cannot be reached: {error}", target)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        """Carry bytes both ways until the server is done, the client leaves or a limit is met."""

        async def upwards() -> None:
            while data := await self._read(reader):
                self._count(out=len(data))
                up_writer.write(data)
                await up_writer.drain()
            if up_writer.can_write_eof():
                up_writer.write_eof()

        sending = asyncio.ensure_future(upwards())
        try:
            while data := await self._read(up_reader):
                self._count(into=len(data))
                writer.write(data)
                await writer.drain()
        except (TimeoutError, OSError):
            pass
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(self._idle_timeout_s):
            return await reader.read(_CHUNK)

    def _count(self, *, into: int = 0, out: int = 0) -> None:
        self.counters.bytes_in += into
        self.counters.bytes_out += out
        if self.counters.bytes_in + self.counters.bytes_out > self._max_bytes:
            self.counters.over_limit = True
            raise ConnectionResetError("byte limit")


def _listen(path: Path) -> socket.socket:
    """Listen at a path of any length (sun_path has 108 bytes, /proc/self/fd is short)."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        except OSError:
            listener.close()
            raise
        return listener
    finally:
        os.close(directory)


def _parse(head: bytes) -> tuple[bytes, str, list[bytes]]:
    lines = head[:-4].split(b"\r\n")
    words = lines[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise _Answer(400, "malformed request line")
    if any(b"\n" in line or b"\r" in line or b"\0" in line for line in lines):
        raise _Answer(400, "malformed header")
    return words[0], words[1].decode("latin-1"), lines[1:]


def _remember(notes: list[tuple[str, str]], target: str, reason: str) -> None:
    if len(notes) < 100:
        notes.append((target[:300], reason[:300]))


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(1):
            await writer.wait_closed()
