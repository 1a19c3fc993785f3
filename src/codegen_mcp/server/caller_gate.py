"""What a coordinator's calls carry in their metadata: its credential, and the epoch it means."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from contextvars import ContextVar

from codegen_mcp.core.errors import InvalidRequest, Unauthenticated
from codegen_mcp.engine.base import Ownership

AUTHORIZATION = "authorization"
EPOCH = "x-codegen-epoch"
"""Under which epoch the caller takes the session of the call to be held; missing or 0: any."""

CALL_EPOCH: ContextVar[int] = ContextVar("call_epoch", default=0)
"""Of the call under way."""
_MAKES = frozenset(
    {
        "/codegen.v1.SessionManagement/CreateSession",
        "/codegen.v1.SessionManagement/RestoreSession",
    }
)
"""Their requests name the epoch of what they make."""
Metadata = Iterable[tuple[str, str | bytes]]


class CallerGate:
    """Checks each call before its handler sees it."""

    def __init__(self, ownership: Ownership, token: str = "", *, required: bool = True) -> None:
        """Make it.

        Args:
            ownership: Knows the epochs of the sessions.
            token: What callers must bear; empty takes everybody who reaches the server.
            required: Whether they must already.
        """
        self._ownership = ownership
        self.required = required
        self._expected = f"Bearer {token}".encode() if token else b""

    def check(self, method: str, request: object, metadata: Metadata) -> None:
        """Let a call in.

        Raises:
            Unauthenticated: It bears no token, or another one.
            Conflict: Its session is held under another epoch than it says (STALE_EPOCH).
            InvalidRequest: The epoch is no number.
        """
        if self._expected and self.required:
            self._authenticate(metadata)
        epoch = epoch_of(metadata)
        CALL_EPOCH.set(epoch)
        if epoch and method not in _MAKES:
            self.check_session(getattr(request, "session_id", ""))

    def check_session(self, session_id: str) -> None:
        """Compare the epoch of the call under way with that of a session.

        Raises:
            Conflict: They differ (STALE_EPOCH).
        """
        epoch = CALL_EPOCH.get()
        if epoch and session_id:
            self._ownership.check(session_id, epoch)

    def _authenticate(self, metadata: Metadata) -> None:
        for key, value in metadata:
            if key == AUTHORIZATION:
                given = value if isinstance(value, bytes) else value.encode()
                if hmac.compare_digest(given, self._expected):
                    return
        raise Unauthenticated(
            "this worker serves its coordinator alone; send the call to the coordinator",
            reason="COORDINATOR_ONLY",
        )


def epoch_of(metadata: Metadata) -> int:
    """Read the epoch of a call; 0 where it names none.

    Raises:
        InvalidRequest: It is no decimal number of at most ten digits.
    """
    for key, value in metadata:
        if key == EPOCH:
            text = value if isinstance(value, str) else ""
            if not text.isascii() or not text.isdecimal() or len(text) > 10:
                raise InvalidRequest(f"{EPOCH} {value[:40]!r} is no epoch; send a decimal number")
            return int(text)
    return 0
