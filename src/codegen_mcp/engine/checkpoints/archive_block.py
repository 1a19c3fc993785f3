"""Tar members on their way into one gzip member, in memory that is used again.

Files are read straight into it: each in bytes of its own, joined later, takes three times as long
(every page of fresh memory is a fault). What is in a block is hashed by the thread that packs it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

from codegen_mcp.engine.checkpoints.tar_format import BLOCK, PADDING

PIECE_BYTES = 1024 * 1024
"""Longest file that is read into a block."""
GROUP_BYTES = 512 * 1024
"""Tar bytes of a gzip member: what is packed again when one file of it turned stale."""
CAPACITY = GROUP_BYTES + PIECE_BYTES + 64 * 1024
"""Of a block: one that is nearly full takes one more file. Pages that are not used cost nothing."""


class Block:
    """Members in order. One thread fills it, another one hashes and reads it afterwards."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Have none; ``capacity`` is in bytes."""
        self._data = memoryview(bytearray(capacity))
        self.end = 0
        """Bytes in use, those of dropped members included."""
        self._places: dict[bytes, tuple[int, int]] = {}
        self._unhashed: dict[bytes, tuple[int, int]] = {}
        self._gaps = False

    def __bool__(self) -> bool:
        return bool(self._places)

    @property
    def capacity(self) -> int:
        """Bytes that it can hold."""
        return len(self._data)

    @property
    def lengths(self) -> Mapping[bytes, int]:
        """Tar bytes of each member, in order."""
        return {path: end - start for path, (start, end) in self._places.items()}

    def fits(self, size: int) -> bool:
        """Whether it can take so many bytes more."""
        return self.end + size <= len(self._data)

    def put(self, path: bytes, parts: Sequence[bytes]) -> None:
        """Take a whole member; it must fit."""
        start = at = self.end
        for part in parts:
            self._data[at : at + len(part)] = part
            at += len(part)
        self._places[path] = start, at
        self.end = at

    def read(self, path: bytes, header: bytes, fd: int, size: int) -> bool:
        """Take a file from its beginning; header, content, padding and a byte more must fit.

        Returns:
            Whether it had exactly ``size`` bytes; else nothing was taken.
        """
        data, start = self._data, self.end
        at = start + len(header)
        end = at + size
        done = os.preadv(fd, [data[at : end + 1]], 0)  # the byte more: is that its end?
        while done < size:
            count = os.preadv(fd, [data[at + done : end + 1]], done)
            if not count:
                return False
            done += count
        if done > size:
            return False
        data[start:at] = header
        padding = PADDING[size % BLOCK]
        data[end : end + len(padding)] = padding
        self.end = end + len(padding)
        self._places[path] = start, self.end
        self._unhashed[path] = at, end
        return True

    def drop(self, path: bytes) -> None:
        """Leave out a member again."""
        del self._places[path]
        self._unhashed.pop(path, None)
        self._gaps = True

    def hash(self) -> dict[bytes, bytes]:
        """Return the sha256 of the content of each file that was read."""
        data, sha256 = self._data, hashlib.sha256
        return {path: sha256(data[at:end]).digest() for path, (at, end) in self._unhashed.items()}

    def tar(self) -> bytes | memoryview:
        """Return the members' bytes; valid until ``clear``."""
        if not self._gaps:
            return self._data[: self.end]
        return b"".join([self._data[start:end] for start, end in self._places.values()])

    def clear(self) -> None:
        """Have no members, so that the memory can be used again."""
        self.end = 0
        self._places.clear()
        self._unhashed.clear()
        self._gaps = False
