"""How much of a text a model is shown: its head and its tail, with exact counts of what is cut."""

from __future__ import annotations

import json
from dataclasses import dataclass

_LINE_SHARE = 4
"""A cut moves to a line's border where that costs at most this part of what is shown."""


@dataclass(frozen=True, slots=True)
class Shown:
    """``head`` and ``tail`` are what is shown; ``omitted`` bytes lie between them."""

    head: str
    tail: str
    omitted: int
    omitted_from: int
    """Offset of the first byte that is not shown."""

    def joined(self, marker: str = "") -> str:
        """Return the text, with ``marker`` on a line of its own where bytes are left out."""
        if not self.omitted:
            return self.head + self.tail
        before = "" if self.head.endswith("\n") or not self.head else "\n"
        return f"{self.head}{before}{marker}\n{self.tail}"


class HeadTail:
    """Collects one stream's beginning and end while it is printed, in bounded memory."""

    def __init__(self, keep_bytes: int) -> None:
        self._keep = keep_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self._gap = False
        self.total = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self.total += len(data)
        room = self._keep - len(self._head)
        if room > 0 and not self._gap:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            if len(self._tail) > 2 * self._keep:
                del self._tail[: len(self._tail) - self._keep]

    def skip(self, total: int) -> None:
        """Count bytes that were printed and never came here: up to ``total`` in all."""
        if total > self.total:
            self._tail.clear()
            self._gap = True
            self.total = total

    def shown(self, room: int) -> Shown:
        """Return what fits into ``room`` bytes of JSON text."""
        tail = bytes(self._tail[-self._keep :])
        held = len(self._head) + len(tail)
        return cut(bytes(self._head), tail, self.total - held, room)


def cut(head: bytes, tail: bytes, between: int, room: int) -> Shown:
    """Show as much of ``head`` and ``tail`` as fits; ``between`` bytes lie between them unseen."""
    if not between:
        whole = head + tail
        text = whole.decode("utf-8", "replace")
        if json_size(text) <= room:
            return Shown(text, "", 0, len(whole))
        head, tail = whole, whole
    total = len(whole) if not between else len(head) + between + len(tail)
    first = _fitting_head(head, room // 2)
    text = first.decode("utf-8", "replace")
    last = _fitting_tail(tail, room - json_size(text))
    if len(first) + len(last) > total:  # they overlap: a text of which nearly all fits
        last = last[len(first) + len(last) - total :]
    return Shown(text, last.decode("utf-8", "replace"), total - len(first) - len(last), len(first))


def fitting(data: bytes, room: int) -> bytes:
    """Return the longest beginning, to a character's border, that fits as JSON text."""
    kept = data[:room]
    while (size := json_size(kept.decode("utf-8", "replace"))) > room:
        kept = kept[: max(len(kept) * room // size - 1, 0)]
    return _whole_end(kept) if len(kept) < len(data) else kept


def json_size(text: str) -> int:
    """Bytes of the text as JSON, without its quotes."""
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")) - 2


def _fitting_head(data: bytes, room: int) -> bytes:
    kept = fitting(data, room)
    line = kept.rfind(b"\n") + 1
    return kept[:line] if len(kept) - line <= len(kept) // _LINE_SHARE else kept


def _fitting_tail(data: bytes, room: int) -> bytes:
    kept = data[max(len(data) - room, 0) :]
    while (size := json_size(kept.decode("utf-8", "replace"))) > room:
        kept = kept[len(kept) - max(len(kept) * room // size - 1, 0) :]
    kept = _whole_start(kept)
    line = kept.find(b"\n") + 1
    return kept[line:] if 0 < line <= len(kept) // _LINE_SHARE else kept


def _whole_end(data: bytes) -> bytes:
    """Drop a character's beginning at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
            return data[:-back] if length > back else data
    return data


def _whole_start(data: bytes) -> bytes:
    """Drop a character's end at the beginning."""
    start = 0
    while start < min(4, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:] if start < 4 else data
