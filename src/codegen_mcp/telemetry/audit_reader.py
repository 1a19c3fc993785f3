"""Reads an audit log line by line, and knows what a crash leaves from what was changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.telemetry.audit_chain import Head, NoRecord, digest_of, open_line, read_line
from codegen_mcp.telemetry.audit_files import UNREADABLE, AuditFile, lines, opened


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a file ends."""

    head: Head
    torn: bytes
    """What a crash left after the last record; empty without one."""
    length: int
    clean: bool
    """Whether the last record is followed by its line feed, and by nothing."""
    fed: bool
    """Whether it ends with a line feed."""


class Follower:
    """Checks the lines of one file after the other.

    Attributes:
        head: Of what was checked; None before the first record.
        torn: Bytes after it that are no record, and that no record has accounted for yet.
    """

    def __init__(self, first: int, head: Head | None = None) -> None:
        """``first``: sequence that the file begins with. ``head``: of the file before it."""
        self.head: Head | None = None
        self.torn = b""
        self._has_torn = False
        self._first = first
        self._before = head

    def feed(self, line: bytes) -> dict[str, Any] | None:
        """Check the next line; None where it is what a crash tore.

        Raises:
            ValueError: It is neither that nor the next record; says why.
        """
        if self.head is None:
            record, self.head = open_line(self._start(line), line)
            return record
        try:
            record, head = open_line(self.head, line)
        except NoRecord:
            self.torn = self.torn + b"\n" + line if self._has_torn else line
            self._has_torn = True
            return None
        if record.get("kind") == "torn":
            if any(record.get(name) != value for name, value in torn_record(self.torn).items()):
                raise ValueError("it does not account for what is before it")
        elif self._has_torn:
            raise ValueError("no record accounts for what is before it, which is none")
        self.head, self.torn, self._has_torn = head, b"", False
        return record

    def _start(self, line: bytes) -> Head:
        """Return the head that the first record says was before it."""
        try:
            after = Head.parse(read_line(line)["after"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError("it does not begin as a file of an audit log does") from None
        if after.sequence + 1 != self._first:
            raise ValueError(f"it goes on after record {after.sequence}, its name says otherwise")
        if self._before is not None and after != self._before:
            raise ValueError(
                f"it goes on after {after}, but the file before it ends with {self._before}"
            )
        return after


def torn_record(torn: bytes) -> dict[str, Any]:
    """Return what accounts for bytes that a crash left."""
    return {"kind": "torn", "bytes": len(torn), "sha256": digest_of(torn)}


def records_of(
    file: AuditFile, follower: Follower
) -> Iterator[tuple[int, dict[str, Any] | None, bool]]:
    """Check a file; yields number, record (None: torn) and whether it had its line feed.

    Raises:
        Corrupt: It is damaged; says in which line.
    """
    number = 0
    try:
        with opened(file) as stream:
            for line, whole in lines(stream):
                number += 1
                yield number, follower.feed(line), whole
    except (ValueError, *UNREADABLE) as error:
        raise damaged(file.path, number, str(error)) from None


def has_line(file: AuditFile) -> bool:
    """Whether it has one whole line. A crash may find the newest file without one.

    Raises:
        Corrupt: It cannot be read.
    """
    try:
        with opened(file) as stream:
            return any(whole for _, whole in lines(stream))
    except UNREADABLE as error:
        raise damaged(file.path, 1, str(error)) from None


def read_end(file: AuditFile) -> End | None:
    """Check one file; None where it has no whole line, as one that a crash found being made.

    Raises:
        Corrupt: It is damaged; says in which line.
    """
    if not has_line(file):
        return None
    follower = Follower(file.first)
    clean = fed = True
    for _, record, fed in records_of(file, follower):
        clean = fed and record is not None
    assert follower.head is not None
    length = file.path.stat().st_size
    return End(head=follower.head, torn=follower.torn, length=length, clean=clean, fed=fed)


def damaged(path: Path, number: int, why: str) -> Corrupt:
    """Return the error of a damaged file."""
    return Corrupt(
        f"the audit log {str(path)!r} is damaged in line {number}: {why}; keep it for whoever "
        "looks into that, and move its directory away to go on with a new log",
        reason="AUDIT_DAMAGED",
        metadata={"line": str(number)},
    )
