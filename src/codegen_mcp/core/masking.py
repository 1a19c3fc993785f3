"""Addresses as people may see them: without user, password and query."""

from __future__ import annotations

import re

MASK = "***"
# The userinfo and query parts of RFC 3986, 3.2.1 and 3.4; a password may hold an "@" by mistake.
_USERINFO = re.compile(r"(?<=://)[^/\s?#]*@")
_QUERY = re.compile(r"(?<=[^\s?])\?[^\s#'\"]+")


def masked(text: str) -> str:
    """Put ``***`` for what may be secret in every address of a text."""
    if "://" not in text:
        return text
    return _QUERY.sub(f"?{MASK}", _USERINFO.sub(f"{MASK}@", text))
