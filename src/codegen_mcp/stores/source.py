"""The file that is to be stored: read once, hashed on the way."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codegen_mcp.core.errors import Corrupt, InvalidRequest
from codegen_mcp.stores.base import PIECE_BYTES
from codegen_mcp.stores.threads import StopFlag


@contextmanager
def open_source(path: Path) -> Iterator[int]:
    """Open a regular file for reading; yields its descriptor.

    Raises:
        InvalidRequest: It is missing or something else.
    """
    try:
        # O_NONBLOCK: a FIFO must not hold up the open; regular files do not heed it (open(2)).
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(f"{str(path)!r} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise InvalidRequest(f"{str(path)!r} is not a regular file")
        yield source
    finally:
        os.close(source)


def hashed_pieces(source: int, sha256: str, name: str, stop: StopFlag) -> Iterator[memoryview]:
    """Yield the bytes of an open file from its beginning; each piece is valid until the next.

    Args:
        source: Descriptor; its offset stays.
        sha256: Expected of all, hexadecimal.
        name: For the message.
        stop: Checked before each piece.

    Raises:
        Corrupt: At the end: the bytes have another sha256. Stopped.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(PIECE_BYTES))
    offset = 0
    while True:
        stop.check()
        count = os.preadv(source, [buffer], offset)
        if not count:
            break
        offset += count
        digest.update(buffer[:count])
        yield buffer[:count]
    if digest.hexdigest() != sha256.lower():
        raise Corrupt(
            f"{name!r} has sha256 {digest.hexdigest()} over {offset} bytes, not {sha256!r}; "
            "nothing was stored"
        )
