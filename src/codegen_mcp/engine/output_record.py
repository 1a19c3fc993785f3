"""One piece of output, in memory and as it lies in a spool."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from codegen_mcp.core.task import Stream

_HEADER = struct.Struct("<IQ")
"""Length with the stream in its highest bit, Unix milliseconds."""
_STDERR = 1 << 31


@dataclass(slots=True)
class Record:
    """Bytes of one stream that arrived within a few milliseconds of each other."""

    stream: Stream
    offset: int
    data: bytes | bytearray
    timestamp_ms: int

    def append(self, data: bytes) -> None:
        """Take bytes that followed at once."""
        if isinstance(self.data, bytes):
            self.data = bytearray(self.data)
        self.data += data


@dataclass(slots=True)
class Mark:
    """A place from which reading may start; never changed."""

    index: int
    """Number of the record that begins here."""
    position: int
    """Where it lies in the spool; -1 for a record in memory."""
    stdout: int
    """Offset of the first stdout byte from here on."""
    stderr: int

    def precedes(self, wanted: Mapping[Stream, int]) -> bool:
        """Whether everything wanted comes after it."""
        return self.stdout <= wanted[Stream.STDOUT] and self.stderr <= wanted[Stream.STDERR]


def encode(records: Iterable[Record], position: int) -> tuple[bytes, list[int]]:
    """Write records as one block for a spool that ends at ``position``; also where each lies."""
    parts: list[bytes | bytearray] = []
    positions = []
    for record in records:
        positions.append(position)
        word = len(record.data) | (_STDERR if record.stream is Stream.STDERR else 0)
        parts += (_HEADER.pack(word, record.timestamp_ms), record.data)
        position += _HEADER.size + len(record.data)
    return b"".join(parts), positions


def decode(block: bytes) -> tuple[Sequence[tuple[Stream, bytes, int]], int]:
    """Read the whole records at the start of ``block``; also how many bytes they took."""
    records = []
    at = 0
    while at + _HEADER.size <= len(block):
        word, timestamp_ms = _HEADER.unpack_from(block, at)
        end = at + _HEADER.size + (word & ~_STDERR)
        if end > len(block):
            break
        stream = Stream.STDERR if word & _STDERR else Stream.STDOUT
        records.append((stream, block[at + _HEADER.size : end], timestamp_ms))
        at = end
    return records, at
