"""A clock that stands still until a test moves it."""

from __future__ import annotations


class ManualClock:
    """Implements ``core.clock.Clock``."""

    def __init__(self, *, unix_ms: int = 1_700_000_000_000) -> None:
        self._monotonic = 1000.0
        self._unix_ms = unix_ms

    def monotonic(self) -> float:
        """Seconds."""
        return self._monotonic

    def unix_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return self._unix_ms

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._monotonic += seconds
        self._unix_ms += round(seconds * 1000)
