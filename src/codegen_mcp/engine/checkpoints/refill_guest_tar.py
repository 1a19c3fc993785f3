"""One member of a tar as the program that refills a sandbox reads it: GNU's format, strictly.

Part of ``refill_guest`` (see there): standard library only, Python 3.8 or later. The layout is
in GNU tar's manual, https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

from __future__ import annotations

from codegen_mcp.engine.checkpoints.refill_guest_input import BLOCK, Input, Refused

NAME_BYTES = 1 << 17
SEGMENTS = 1 << 17
"""Data segments of one sparse file."""
MAGIC = b"ustar  \0"
"""GNU's, in which the prefix field of POSIX is no part of the name."""
KINDS = {b"0": "f", b"S": "f", b"5": "d", b"2": "l", b"1": "h", b"6": "p"}
"""Type flags, as kinds of the manifest."""


def number(field: bytes, where: bytes) -> int:
    """Read a number of a header: octal, or GNU's base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.rstrip(b"\0 ")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise Refused("a header has a field that is no number", where)
    return int(digits, 8)


class Member:
    """One header of an archive, with the long names before it."""

    __slots__ = ("header", "link", "name", "size", "type")

    def __init__(self, source: Input, header: bytes) -> None:
        longer: dict[bytes, bytes] = {}
        while True:
            self.header = header
            self.name = header[:100].partition(b"\0")[0]
            if header[257:265] != MAGIC:
                raise Refused("a header is not GNU tar's", self.name)
            written = number(header[148:156], self.name)
            if written != sum(header) - sum(header[148:156]) + 256:
                raise Refused("a header has the wrong checksum", self.name)
            self.type = header[156:157]
            self.size = number(header[124:136], self.name)
            if self.type not in (b"L", b"K"):
                break
            if self.type in longer or self.size > NAME_BYTES:
                raise Refused("a long name is there twice, or too long", self.name)
            text = source.take(self.size + -self.size % BLOCK, self.name)[: self.size]
            longer[self.type] = text[:-1] if text[-1:] == b"\0" else text
            header = source.take(BLOCK, self.name)
        self.name = longer.get(b"L", self.name)
        self.link = longer.get(b"K", header[157:257].partition(b"\0")[0])
        if self.type not in KINDS:
            raise Refused(f"a member is of the unknown type {self.type!a}", self.name)
        if self.type == b"5" and self.name[-1:] == b"/":
            self.name = self.name[:-1]
        if self.size and self.type not in (b"0", b"S"):
            raise Refused("a member that is no file has bytes", self.name)

    def segments(self, source: Input) -> tuple[int, list[tuple[int, int]]]:
        """Return the length of a sparse file and where its data go: (offset, length) in order."""
        length = number(self.header[483:495], self.name)
        block, at, more = self.header[386:482], 0, self.header[482]
        found: list[tuple[int, int]] = []
        end = 0
        while True:
            for at in range(0, len(block) - 23, 24):
                if not block[at]:
                    break
                offset = number(block[at : at + 12], self.name)
                count = number(block[at + 12 : at + 24], self.name)
                if offset < end or offset + count > length or len(found) >= SEGMENTS:
                    raise Refused("a map of a sparse file is not in order", self.name)
                end = offset + count
                if count:
                    found.append((offset, count))
            if not more:
                break
            block = source.take(BLOCK, self.name)
            more = block[504]
            block = block[:504]
        if sum(count for _, count in found) != self.size:
            raise Refused("a map of a sparse file does not fit its data", self.name)
        return length, found
