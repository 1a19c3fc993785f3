"""Bytes both ways, plain or in TLS, with one small interface for what is carried."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Protocol

from codegen_mcp.core.limits import KIB

CHUNK = 64 * KIB
CLOSE_S = 1.0


class ByteStream(Protocol):
    """One connection."""

    async def read(self) -> bytes:
        """Return what is there, at most 64 KiB; empty at its end. OSError: it broke."""

    async def write(self, data: bytes) -> None:
        """Send, and wait while the other side does not take it. OSError: it broke."""

    async def finish(self) -> None:
        """Say that nothing more comes, where that can be said."""

    async def aclose(self) -> None:
        """Close; never raises."""


class PlainStream:
    """A socket's two ends of asyncio."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes = b""
    ) -> None:
        """``head`` was read already."""
        self._reader = reader
        self._writer = writer
        self._head = head

    async def read(self) -> bytes:
        """Read."""
        if self._head:
            head, self._head = self._head, b""
            return head
        return await self._reader.read(CHUNK)

    def unread(self, data: bytes) -> None:
        """Have the next read return this first."""
        self._head = data + self._head

    async def write(self, data: bytes) -> None:
        """Write."""
        self._writer.write(data)
        await self._writer.drain()

    async def finish(self) -> None:
        """Shut down the sending side."""
        with contextlib.suppress(OSError, RuntimeError):
            if self._writer.can_write_eof():
                self._writer.write_eof()

    async def aclose(self) -> None:
        """Close."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._writer.wait_closed()

    def abort(self) -> None:
        """Close without sending what waits."""
        self._writer.transport.abort()


class TlsStream:
    """TLS over another stream (ssl.MemoryBIO); one reader and one writer at a time."""

    def __init__(
        self,
        inner: ByteStream,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
        )

    async def handshake(self) -> None:
        """Agree on keys. ssl.SSLError, ssl.CertificateError: it failed."""
        try:
            await self._do(self._tls.do_handshake)
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                await self._flush()  # the alert that says why
            raise

    async def read(self) -> bytes:
        """Read; a peer that goes without saying so has ended, too."""
        try:
            data: bytes = await self._do(self._tls.read, CHUNK)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        return data

    async def write(self, data: bytes) -> None:
        """Write."""
        view = memoryview(data)
        while view:
            view = view[await self._do(self._tls.write, view) :]

    async def finish(self) -> None:
        """Nothing: closing is all that TLS has for it."""

    async def aclose(self) -> None:
        """Say goodbye and close."""
        with contextlib.suppress(OSError, TimeoutError):
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            async with asyncio.timeout(CLOSE_S):
                await self._flush()
        await self._inner.aclose()

    async def _do(self, call: Callable[..., Any], *args: Any) -> Any:
        while True:
            try:
                result = call(*args)
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._inner.read()
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._inner.write(self._outgoing.read())
