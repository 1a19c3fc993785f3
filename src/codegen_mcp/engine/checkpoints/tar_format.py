"""Tar headers of an archive: GNU's format, one way to write each entry and no other.

The layout is that of ``struct posix_header``, ``oldgnu_header`` and ``sparse_header`` in GNU tar's
manual ("Basic Tar Format"). A reader builds the header that an entry must have and compares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from codegen_mcp.core.checkpoint import Entry, EntryKind

BLOCK = 512
END = bytes(2 * BLOCK)
"""End of the archive: two blocks of zeros."""
PADDING = [bytes(-size % BLOCK) for size in range(BLOCK)]
"""What follows content, by its length modulo BLOCK."""
TYPES = {
    EntryKind.FILE: b"0",
    EntryKind.HARDLINK: b"1",
    EntryKind.SYMLINK: b"2",
    EntryKind.DIRECTORY: b"5",
    EntryKind.FIFO: b"6",
}
SPARSE = b"S"
LONG_NAME = b"L"
LONG_LINK = b"K"
FIELD = 100
"""Bytes of the name's and the link's field; longer ones precede the header in their own record."""
TYPE_AT = 156
MAP_AT = 386
"""Four places of a sparse file's map in its header."""
EXTENDED_AT = 482
MAP_IN_HEADER = 4
MAP_IN_EXTENSION = 21
PLACE = 24
"""Bytes of a place in the map: offset and length."""

_MAGIC = b"ustar  \0"
_OWNER = b"0001750\x000001750\0"
_ROOT = b"0000000\x000000000\0"
_CHECKSUM_SPACES = 8 * 0x20
_OCTAL_END = 8**11
_OCTAL = re.compile(rb"[0-7]{11}\0")
_TAIL = bytes(247)
_MODES = [b"%07o\0" % mode for mode in range(0o10000)]


def number(value: int) -> bytes:
    """Twelve bytes: eleven octal digits, or base-256 for what is negative or has more."""
    if 0 <= value < _OCTAL_END:
        return b"%011o\0" % value
    if value < 0:
        return (value + (1 << 96)).to_bytes(12, "big")
    return (value | (1 << 95)).to_bytes(12, "big")


def parse_number(field: bytes) -> int:
    """Read what ``number`` wrote. ValueError for anything else."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        value = value - (1 << 96) if field[0] == 0xFF else value & ~(1 << 95)
    else:
        value = int(field[:11], 8) if _OCTAL.fullmatch(field) else -1
    if number(value) != field:
        raise ValueError(f"{field!r} is no number field of this format")
    return value


def _block(
    name: bytes, mode: int, owner: bytes, size: int, seconds: int, kind: bytes, link: bytes,
    tail: bytes = _TAIL,
) -> bytes:  # fmt: skip
    head = b"".join(
        (name[:FIELD].ljust(FIELD, b"\0"), _MODES[mode], owner, number(size), number(seconds))
    )
    rest = b"".join((kind, link[:FIELD].ljust(FIELD, b"\0"), _MAGIC, tail))
    if tail is _TAIL:
        checksum = sum(head) + sum(kind) + sum(link[:FIELD]) + _MAGIC_SUM
    else:
        checksum = sum(head) + sum(rest) + _CHECKSUM_SPACES
    return b"%b%06o\0 %b" % (head, checksum, rest)


_MAGIC_SUM = sum(_MAGIC) + _CHECKSUM_SPACES


def long_header(kind: bytes, size: int) -> bytes:
    """Header of the record that holds a long name or link; ``size`` has its NUL."""
    return _block(b"././@LongLink", 0o644, _ROOT, size, 0, kind, b"")


def _long(kind: bytes, text: bytes) -> bytes:
    size = len(text) + 1
    return b"%b%b\0%b" % (long_header(kind, size), text, PADDING[size % BLOCK])


def file_header(path: bytes, mode: int, size: int, mtime_ns: int) -> bytes:
    """All that precedes the content of a file without holes (``member_header`` of its entry)."""
    before = _long(LONG_NAME, path) if len(path) > FIELD else b""
    return before + _block(path, mode, _OWNER, size, mtime_ns // 1_000_000_000, b"0", b"")


def member_header(entry: Entry, segments: Sequence[tuple[int, int]] = ()) -> bytes:
    """All that precedes an entry's content: whole blocks.

    Args:
        entry: Its sha256 and source are not looked at.
        segments: For a sparse file: where it has data, as ``tar_sparse.sparse_map`` gives it.
    """
    kind, name, link = entry.kind, entry.path, entry.target
    if kind is EntryKind.DIRECTORY:
        name += b"/"
    seconds = entry.mtime_ns // 1_000_000_000
    before = b""
    if len(link) > FIELD:
        before = _long(LONG_LINK, link)
    if len(name) > FIELD:
        before += _long(LONG_NAME, name)
    if entry.sparse:
        return before + _sparse_header(entry, name, seconds, segments)
    return before + _block(name, entry.mode, _OWNER, entry.size, seconds, TYPES[kind], link)


def _sparse_header(
    entry: Entry, name: bytes, seconds: int, segments: Sequence[tuple[int, int]]
) -> bytes:
    places = b"".join([number(part) for segment in segments for part in segment])
    first = places[: MAP_IN_HEADER * PLACE]
    more = places[MAP_IN_HEADER * PLACE :]
    tail = b"".join(
        (
            bytes(MAP_AT - TYPE_AT - 1 - FIELD - len(_MAGIC)),
            first.ljust(MAP_IN_HEADER * PLACE, b"\0"),
            b"\1" if more else b"\0",
            number(entry.size),
        )
    ).ljust(len(_TAIL), b"\0")
    stored = sum(length for _, length in segments)
    blocks = [_block(name, entry.mode, _OWNER, stored, seconds, SPARSE, b"", tail)]
    width = MAP_IN_EXTENSION * PLACE
    for start in range(0, len(more), width):
        last = start + width >= len(more)
        part = more[start : start + width].ljust(width, b"\0")
        blocks.append((part + (b"\0" if last else b"\1")).ljust(BLOCK, b"\0"))
    return b"".join(blocks)
