"""The files of an audit log: named by their first record, one after the other.

Each begins with a record of kind ``file`` that names the head before it, so a file can be checked
when older ones were taken away. A file that is full may be compressed; none is ever written again.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from codegen_mcp.core.errors import Conflict

_NAME = re.compile(r"audit-([0-9]{12})\.jsonl(\.gz)?")
LOCK = "lock"
MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class AuditFile:
    """One of them."""

    path: Path
    first: int
    """Sequence of its first record."""
    compressed: bool


def name_of(first: int) -> str:
    """Return the name of the file that begins with this record."""
    return f"audit-{first:012d}.jsonl"


def list_files(directory: Path) -> list[AuditFile]:
    """Return all, oldest first. Where a file is there twice, the one that is not compressed counts.

    Raises:
        OSError: As listdir.
    """
    found: dict[int, AuditFile] = {}
    for name in sorted(os.listdir(directory), reverse=True):  # plain after compressed
        if match := _NAME.fullmatch(name):
            first = int(match[1])
            found[first] = AuditFile(directory / name, first, match[2] is not None)
    return [found[first] for first in sorted(found)]


@contextmanager
def opened(file: AuditFile) -> Iterator[BinaryIO]:
    """Open one to read its plain bytes, also where it was compressed since it was listed."""
    path, compressed = file.path, file.compressed
    if not compressed and not path.exists():
        path, compressed = path.with_name(path.name + ".gz"), True
    with path.open("rb") as raw:
        if not compressed:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as plain:
            yield plain  # type: ignore[misc]  # it reads lines as any binary file


UNREADABLE = (OSError, EOFError, zlib.error)
"""What reading a damaged compressed file raises."""


def lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield each line without its line feed, and whether it had one."""
    while line := stream.readline(MAX_LINE_BYTES):
        whole = line.endswith(b"\n")
        yield (line[:-1] if whole else line), whole


def compress(file: AuditFile) -> None:
    """Replace a file by its compressed form; a crash leaves one of both, or both.

    Raises:
        OSError: No room, for example; the plain one is still there.
    """
    target = file.path.with_name(file.path.name + ".gz")
    temporary = target.with_name(target.name + ".tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as raw, file.path.open("rb") as source:
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                while block := source.read(1024 * 1024):
                    packed.write(block)
            raw.flush()
            os.fsync(raw.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(target)
    sync_directory(file.path.parent)
    file.path.unlink()


def sync_directory(directory: Path) -> None:
    """Wait until the names in it are on the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock(directory: Path) -> int:
    """Keep other processes from writing here until the descriptor is closed (flock(2)).

    Raises:
        Conflict: Another process does.
    """
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(
            f"another process writes the audit log in {str(directory)!r}; give this one another "
            "directory (AUDIT_DIR)"
        ) from None
    return fd
