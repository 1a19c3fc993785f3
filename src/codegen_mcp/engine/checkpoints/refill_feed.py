"""What a refill's program reads, written into its pipe: inflated, counted, never blocking the loop.

Layout of the stream: ``refill_guest``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fcntl import F_SETPIPE_SZ, fcntl

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.engine.checkpoints.archive_codec import INFLATE_ERRORS, Inflater, inflater
from codegen_mcp.sandbox.volumes.threads import to_end

PIPE_BYTES = 1024 * 1024
"""Most that an ordinary user may ask for, pipe(7): both sides can work at the same time."""
_PIECE_BYTES = 256 * 1024
_BATCH_BYTES = 1024 * 1024
"""Inflated in one visit to a thread: a few milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSource:
    """One archive of a chain, to be read once."""

    number: int
    """Of its checkpoint."""
    inflated_bytes: int
    """Exactly so many come out; more or fewer are Corrupt."""
    pieces: AsyncIterator[bytes]
    """The object's bytes, however cut. Its errors end the refill; closed at the end of it."""


class Inflating:
    """Inflates the gzip members of one archive, piece by piece. For one thread at a time."""

    def __init__(self, number: int, expected: int) -> None:
        self._number = number
        self._expected = expected
        self._done = 0
        self._member: Inflater | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what a piece inflates to, in parts of 1 to 256 KiB.

        Raises:
            Corrupt: No gzip, damaged, or more than expected.
        """
        while True:
            if self._member is None:
                if not data:
                    return
                self._member = inflater()
            try:
                # One byte more than is left would be too much, and is how too much is found.
                room = min(_PIECE_BYTES, self._expected - self._done + 1)
                out = self._member.decompress(data, room)
            except INFLATE_ERRORS as error:
                raise self._corrupt(
                    f"is damaged after {self._done} inflated bytes: {error}"
                ) from None
            self._done += len(out)
            if self._done > self._expected:
                raise self._corrupt(f"inflates to more than its {self._expected} bytes")
            if out:
                yield out
            if self._member.eof:
                data, self._member = self._member.unused_data, None
                continue
            data = self._member.unconsumed_tail
            if not data and not out:
                return

    def finish(self) -> None:
        """Corrupt when something is missing."""
        if self._member is not None or self._done != self._expected:
            raise self._corrupt(f"ends after {self._done} of its {self._expected} bytes")

    def _corrupt(self, what: str) -> Corrupt:
        return Corrupt(
            f"the archive of checkpoint number {self._number} {what}; restore another checkpoint"
        )


async def feed(fd: int, manifest_lines: bytes, archives: Sequence[ArchiveSource]) -> None:
    """Write everything into a pipe; the caller closes it.

    Args:
        fd: Write end, non-blocking.
        manifest_lines: The manifest, inflated.
        archives: Oldest first.

    Raises:
        Corrupt: An archive is damaged, or has another length than it should.
        BrokenPipeError: Nobody reads any more.
    """
    with suppress(OSError):  # the user may hold as many pages in pipes as it is allowed to
        fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
    head = {
        "format": 1,
        "manifest_bytes": len(manifest_lines),
        "archives": [{"number": one.number, "bytes": one.inflated_bytes} for one in archives],
    }
    await _write(fd, json.dumps(head).encode() + b"\n")
    await _write(fd, manifest_lines)
    for archive in archives:
        inflating = Inflating(archive.number, archive.inflated_bytes)
        async for piece in archive.pieces:
            parts = inflating.feed(piece)
            while batch := await to_end(lambda parts=parts: _batch(parts)):  # type: ignore[misc]
                for part in batch:
                    await _write(fd, part)
        inflating.finish()


async def close_pieces(archives: Sequence[ArchiveSource]) -> None:
    """Close what the pieces are read from, as far as it can be closed."""
    for archive in archives:
        close = getattr(archive.pieces, "aclose", None)
        if close is not None:
            await close()


def _batch(parts: Iterator[bytes]) -> list[bytes]:
    batch, count = [], 0
    for part in parts:
        batch.append(part)
        count += len(part)
        if count >= _BATCH_BYTES:
            break
    return batch


async def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view[:_PIECE_BYTES]) :]
        except BlockingIOError:
            await _writable(fd)


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)
