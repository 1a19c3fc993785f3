"""Session ids of coordinators that make them in their own way.

Ours are ``ses_`` and 32 hexadecimal digits, and name directories and objects of a store. What a
coordinator sends in another form is one-way mapped to that, the same each time, so that it needs no
table that could be lost; the way back is remembered while the worker lives.
"""

from __future__ import annotations

import hashlib
import re

_OURS = re.compile(r"ses_[0-9a-f]{32}")
_SALT = b"codegen.v1 session id\0"


class ForeignIds:
    """Of one coordinator."""

    def __init__(self) -> None:
        self._theirs: dict[str, str] = {}

    def ours(self, session_id: str) -> str:
        """Return the id under which this worker has a session; empty stays empty."""
        if not session_id or _OURS.fullmatch(session_id):
            return session_id
        digest = hashlib.sha256(_SALT + session_id.encode()).hexdigest()[:32]
        own = f"ses_{digest}"
        self._theirs[own] = session_id
        return own

    def theirs(self, session_id: str) -> str:
        """Return the id by which the coordinator knows a session."""
        return self._theirs.get(session_id, session_id)
