"""Reading files of a workspace."""

from __future__ import annotations

import hashlib
import os

from codegen_mcp.core.errors import InvalidRequest, LimitExceeded
from codegen_mcp.engine.workspace_threads import Stop

MAX_READ_BYTES = 64 * 1024 * 1024
"""Of one read into memory; streams have no bound."""
CHUNK_BYTES = 1024 * 1024


def check_range(offset: int, length: int) -> None:
    """Refuse a range that has no meaning or does not fit into memory."""
    if offset < 0 or length < 0:
        raise InvalidRequest(f"offset {offset!r} and length {length!r} must not be negative")
    if length > MAX_READ_BYTES:
        raise LimitExceeded(
            f"length {length!r} is above the {MAX_READ_BYTES} bytes of one read; read ranges, or "
            "download the file as a stream"
        )


def read_range(fd: int, offset: int, length: int, stop: Stop | None = None) -> bytes:
    """Read until ``length`` bytes are there or the file ends."""
    data = os.pread(fd, min(length, CHUNK_BYTES), offset)
    if len(data) == length or not data:
        return data
    chunks = [data]
    got = len(data)
    while got < length:
        if stop is not None:
            stop.check()
        data = os.pread(fd, min(length - got, CHUNK_BYTES), offset + got)
        if not data:
            break
        chunks.append(data)
        got += len(data)
    return b"".join(chunks)


def hash_file(fd: int, stop: Stop | None = None, *, limit: int | None = None) -> tuple[int, str]:
    """(bytes read, their sha256), to the end of the file as it is then, or to ``limit``."""
    digest = hashlib.sha256()
    size = 0
    while data := os.pread(fd, CHUNK_BYTES if limit is None else limit - size, size):
        if stop is not None:
            stop.check()
        digest.update(data)
        size += len(data)
    return size, digest.hexdigest()
