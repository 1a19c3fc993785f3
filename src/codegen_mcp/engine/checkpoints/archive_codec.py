"""Gzip by igzip where it is installed, else by zlib; both let other threads run meanwhile."""

from __future__ import annotations

import zlib
from typing import Protocol

try:
    from isal import isal_zlib as _fast
except ImportError:  # Not in every installation; the bytes differ then, what they inflate to not.
    _fast = None  # type: ignore[assignment]

_GZIP = 31
"""``wbits`` of a gzip stream, header and checksum included (zlib manual, inflateInit2)."""
CODEC = "igzip" if _fast else "zlib"
INFLATE_ERRORS: tuple[type[Exception], ...] = (zlib.error,)
if _fast:
    INFLATE_ERRORS = (zlib.error, _fast.IsalError)  # type: ignore[assignment]  # an instance there


class Deflater(Protocol):
    """Makes one gzip member out of pieces."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Take a piece; gives what is ready."""

    def flush(self) -> bytes:
        """End the member; gives the rest."""


class Inflater(Protocol):
    """Reads one gzip member; its checksum and length are checked at its end."""

    @property
    def eof(self) -> bool:
        """Whether the member has ended."""

    @property
    def unconsumed_tail(self) -> bytes:
        """Input that did not fit into ``max_length``."""

    @property
    def unused_data(self) -> bytes:
        """Input after the member's end."""

    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes:
        """Inflate; at most ``max_length`` bytes, 0 is any number. Raises INFLATE_ERRORS."""


def deflater() -> Deflater:
    """Begin one gzip member (its header has no time, so equal input gives equal bytes)."""
    if _fast:
        return _fast.compressobj(1, _fast.DEFLATED, _GZIP)
    return zlib.compressobj(1, zlib.DEFLATED, _GZIP)


def deflate(data: bytes | memoryview) -> bytes:
    """Pack one whole gzip member."""
    packer = deflater()
    return packer.compress(data) + packer.flush()


def inflater() -> Inflater:
    """Begin to read one gzip member."""
    return _fast.decompressobj(_GZIP) if _fast else zlib.decompressobj(_GZIP)
