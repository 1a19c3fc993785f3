"""What the server tells whoever measures it; called in the event loop, never raises."""

from __future__ import annotations

from typing import Protocol


class ServerHooks(Protocol):
    """Events of calls."""

    def call_finished(self, *, method: str, code: str, seconds: float) -> None:
        """A call of ours ended; ``code`` is the status name (``OK``, ``NOT_FOUND``, ...)."""


class NoServerHooks:
    """Listens to nothing."""

    def call_finished(self, *, method: str, code: str, seconds: float) -> None:
        """Do nothing."""
