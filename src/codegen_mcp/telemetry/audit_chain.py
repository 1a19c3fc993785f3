"""The chain of an audit log: what a record is as a line, and how each vouches for all before it.

A line is one JSON object in one fixed form, whose last member ``hash`` is the SHA-256 of the hash
before it (64 hexadecimal digits) followed by the line without that member. So whoever knows the
hash of one record knows whether everything up to it is as it was written; what is changed later
breaks there. A chain alone does not stop whoever can write the file from making all of it anew:
for that the newest hash, the head, is published elsewhere (log lines, a metric) as it moves.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GENESIS = "0" * 64
"""The hash before the first record."""
_ENCODE = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode
_HASH = re.compile(r"[0-9a-f]{64}")
_END = len(',"hash":"') + 64 + len('"}')


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: how many records it has, and the hash of the last."""

    sequence: int = 0
    digest: str = GENESIS

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``SEQUENCE:DIGEST``.

        Raises:
            ValueError: It is not that.
        """
        number, _, digest = text.strip().partition(":")
        if not number.isdecimal() or not _HASH.fullmatch(digest):
            raise ValueError(f"{text!r} must be SEQUENCE:DIGEST, the digest 64 hexadecimal digits")
        return cls(int(number), digest)

    def __str__(self) -> str:
        return f"{self.sequence}:{self.digest}"


def seal(head: Head, record: Mapping[str, Any]) -> tuple[bytes, Head]:
    """Return the record as the line after ``head``, without the line feed, and the new head.

    Args:
        head: Of the chain so far.
        record: JSON values; ``seq`` and ``hash`` are added.
    """
    sequence = head.sequence + 1
    body = _ENCODE({"seq": sequence, **record})
    digest = hash_of(head.digest, body.encode("ascii"))
    line = f'{body[:-1]},"hash":"{digest}"}}'
    return line.encode("ascii"), Head(sequence, digest)


def hash_of(before: str, body: bytes) -> str:
    """Return the hash of a record: of the one before, and the line without its own."""
    return hashlib.sha256(before.encode("ascii") + body).hexdigest()


class NoRecord(ValueError):
    """A line that is not JSON: what a crash leaves of one, or damage."""


def open_line(head: Head, line: bytes) -> tuple[dict[str, Any], Head]:
    """Check a line against the head before it; return its record and the new head.

    Raises:
        ValueError: It is no record (``NoRecord``), or not the one that followed; says which.
    """
    record = read_line(line)
    if not isinstance(record, dict) or not isinstance(record.get("seq"), int):
        raise ValueError("it is no record")
    if record["seq"] != head.sequence + 1:
        raise ValueError(f"it has the number {record['seq']}, not {head.sequence + 1}")
    digest = record.get("hash")
    body = line[:-_END] + b"}"
    if line[-_END:] != f',"hash":"{digest}"}}'.encode() or hash_of(head.digest, body) != digest:
        raise ValueError("its hash does not follow from the record before and from what it says")
    return record, Head(record["seq"], digest)


def read_line(line: bytes) -> Any:
    """Parse a line.

    Raises:
        NoRecord: It is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise NoRecord("it is not JSON") from None


def digest_of(data: bytes) -> str:
    """Name contents without keeping them: their SHA-256."""
    return hashlib.sha256(data).hexdigest()
