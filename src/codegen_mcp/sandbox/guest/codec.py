"""Lists of byte strings as bytes: four length bytes (little endian) before each."""

from __future__ import annotations


def encode(items: list[bytes]) -> bytes:
    """Return the items as one byte string."""
    return b"".join([len(item).to_bytes(4, "little") + item for item in items])


def decode(data: bytes) -> list[bytes]:
    """Return the items of ``encode``; ValueError when the bytes are not of its making."""
    items, at, end = [], 0, len(data)
    while at < end:
        start = at + 4
        if start > end:
            raise ValueError("cut in a length")
        at = start + int.from_bytes(data[at:start], "little")
        if at > end:
            raise ValueError("cut in an item")
        items.append(bytes(data[start:at]))
    return items
