"""The beginning and the end of one output stream, with the exact count of what lies between."""

from __future__ import annotations

import json
from dataclasses import dataclass

from codegen_mcp.core.limits import KIB

_BLOCK = 16 * KIB
"""Granularity in which text that swells when encoded is left out."""
_MAX_SWELL = 6
"""JSON writes a control character in six bytes; nothing is longer for one byte of input."""


@dataclass(frozen=True, slots=True)
class Captured:
    """What is kept of a stream: ``len(data) + omitted == total``."""

    data: bytes
    total: int
    omitted: int


class HeadTail:
    """Keeps the first and the last bytes of a stream.

    Where something is left out, both edges lie between UTF-8 characters. ``text_bytes`` bounds
    the size of the kept part once it is decoded and written as JSON, so that no answer outgrows
    a message whatever the code prints.
    """

    __slots__ = ("_half", "_head", "_omitted", "_tail", "_text_half", "_total")

    def __init__(self, capture_bytes: int, text_bytes: int) -> None:
        self._half = capture_bytes // 2
        self._text_half = text_bytes // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0
        self._omitted = 0

    @property
    def total(self) -> int:
        """Bytes printed, omitted ones included."""
        return self._total

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self._total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            if len(self._tail) > self._half:
                del self._tail[: len(self._tail) - self._half]

    def omit(self, count: int) -> None:
        """Count bytes that were printed and are kept nowhere."""
        self._total += count
        self._omitted += count

    def capture(self) -> Captured:
        """Return what is kept."""
        head, tail = bytes(self._head), bytes(self._tail)
        whole = len(head) + len(tail) + self._omitted == self._total
        if whole and _fits(head + tail, 2 * self._text_half):
            kept = head + tail
        elif not tail:
            middle = len(head) // 2
            kept = self._edges(head[:middle], head[middle:])
        else:
            kept = self._edges(head, tail)
        return Captured(kept, self._total, self._total - len(kept))

    def _edges(self, head: bytes, tail: bytes) -> bytes:
        head = _without_torn_end(_bounded_head(head, self._text_half))
        return head + _without_torn_start(_bounded_tail(tail, self._text_half))


def _encoded(data: bytes) -> int:
    return len(json.dumps(data.decode("utf-8", "replace"), ensure_ascii=False).encode()) - 2


def _fits(data: bytes, limit: int) -> bool:
    return len(data) * _MAX_SWELL <= limit or _encoded(data) <= limit


def _bounded_head(data: bytes, limit: int) -> bytes:
    if _fits(data, limit):
        return data
    used = 0
    for start in range(0, len(data), _BLOCK):
        used += _encoded(data[start : start + _BLOCK])
        if used > limit:
            return data[:start]
    return data


def _bounded_tail(data: bytes, limit: int) -> bytes:
    if _fits(data, limit):
        return data
    used = 0
    for end in range(len(data), 0, -_BLOCK):
        used += _encoded(data[max(end - _BLOCK, 0) : end])
        if used > limit:
            return data[end:]
    return data


def _without_torn_end(data: bytes) -> bytes:
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
        return data[:-back] if length > back else data
    return data


def _without_torn_start(data: bytes) -> bytes:
    for start in range(min(4, len(data))):
        if data[start] & 0xC0 != 0x80:
            return data[start:]
    return data if len(data) > 3 else b""
