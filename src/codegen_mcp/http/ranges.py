"""One range of bytes and conditions of a GET: RFC 9110, sections 13 and 14."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes[ \t]*=[ \t,]*([0-9]*)[ \t]*-[ \t]*([0-9]*)[ \t,]*", re.IGNORECASE)
_ETAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_DIGITS = 19
"""Of the longest number that is read; what is longer is no range of ours."""


class Unsatisfiable(Exception):
    """The range lies beyond the end (416)."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (offset, length), length at least 1; None is the whole.

    A header that is malformed, has another unit or several ranges is ignored, as section 14.2
    permits: the answer is then the whole.

    Raises:
        Unsatisfiable: No byte of it is there.
    """
    match = _RANGE.fullmatch(header) if header else None
    if match is None or max(map(len, match.groups())) > _DIGITS:
        return None
    first, last = match.groups()
    if not first:
        if not last:
            return None
        length = min(int(last), size)
        if not length:
            raise Unsatisfiable
        return size - length, length
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise Unsatisfiable
    end = min(int(last), size - 1) if last else size - 1
    return int(first), end - int(first) + 1


def none_match(header: str | None, etag: str) -> bool:
    """Whether If-None-Match lets the request through: no listed tag is this one (weakly)."""
    if header is None:
        return True
    return header.strip() != "*" and etag not in _ETAG.findall(header)


def if_range(header: str | None, etag: str) -> bool:
    """Whether the range holds: without If-Range, or when it is this very tag (strongly)."""
    return header is None or header.strip() == etag
