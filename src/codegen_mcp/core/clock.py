"""Time, so that tests can own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for intervals, Unix milliseconds for what is shown."""

    def monotonic(self) -> float:
        """Seconds; only differences mean anything."""

    def unix_ms(self) -> int:
        """Milliseconds since 1970 UTC."""


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Seconds from ``time.monotonic``."""
        return time.monotonic()

    def unix_ms(self) -> int:
        """Milliseconds from ``time.time_ns``."""
        return time.time_ns() // 1_000_000


class BoottimeClock(SystemClock):
    """The machine's clock, whose seconds also pass while the machine is suspended."""

    def monotonic(self) -> float:
        """Seconds from CLOCK_BOOTTIME (clock_gettime(2)), which no time step moves."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
