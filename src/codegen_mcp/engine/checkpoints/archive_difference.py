"""Says what is wrong with a header that is not the one it must be."""

from __future__ import annotations

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.engine.checkpoints import tar_format

_FIELDS = {
    "type": (156, 157),
    "name": (0, 100),
    "mode": (100, 108),
    "uid": (108, 116),
    "gid": (116, 124),
    "size": (124, 136),
    "mtime": (136, 148),
    "link": (157, 257),
    "magic": (257, 265),
    "rest": (265, 512),
    "checksum": (148, 156),
}
"""In the order in which they are looked at: a checksum differs with any other."""
_TYPES = {*tar_format.TYPES.values(), tar_format.SPARSE}


def shown(path: bytes) -> str:
    """A name for a message."""
    text = path.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 120 else f"{text[:60]}...{text[-57:]}")


def check_header(raw: bytes, at: int) -> None:
    """Corrupt when a block at byte ``at`` is no header of an entry."""
    total = sum(raw) - sum(raw[148:156]) + 8 * 0x20
    if raw[148:156] != b"%06o\0 " % total:
        raise Corrupt(f"the header at byte {at} has a wrong checksum")
    kind = raw[tar_format.TYPE_AT : tar_format.TYPE_AT + 1]
    if kind not in _TYPES:
        raise Corrupt(f"the member at byte {at} has the type {kind!r}, which no archive has")


def difference(raw: bytes, expected: bytes) -> str:
    """Name the first field that differs, with both its values."""
    for name, (start, end) in _FIELDS.items():
        if raw[start:end] != expected[start:end]:
            was, want = raw[start:end].rstrip(b"\0"), expected[start:end].rstrip(b"\0")
            return f"{name} {shown(was)}, not {shown(want)}"
    return "it has other records of long names, or another sparse map"
