"""How many sandboxes should wait: what is asked for while one boots, and a few more."""

from __future__ import annotations

import math
from collections import deque

from codegen_mcp.core.clock import Clock
from codegen_mcp.engine.slot import SlotKey

WINDOW_S = 30.0
"""Creations of this long count as recent."""
REMEMBERED_S = 600.0
"""A kind of sandbox that was asked for is kept ready for this long."""
FIRST_BOOT_S = 0.1
"""What a boot is taken to cost until one was measured."""


class Demand:
    """Recent creations of one kind of sandbox, and how long one takes to boot."""

    def __init__(self, key: SlotKey, base: int, clock: Clock) -> None:
        """``base`` wait always; 0 makes it a kind that is ready only while it is asked for."""
        self.key = key
        self._base = base
        self._clock = clock
        self._asked: deque[float] = deque()
        self._last = clock.monotonic()
        self._boot_s = FIRST_BOOT_S

    @property
    def forgotten(self) -> bool:
        """Whether nothing of this kind need be ready any more."""
        return not self._base and self._clock.monotonic() - self._last > REMEMBERED_S

    def asked(self) -> None:
        """Note a creation."""
        self._last = self._clock.monotonic()
        self._asked.append(self._last)

    def booted(self, seconds: float) -> None:
        """Note how long a boot took."""
        self._boot_s += (seconds - self._boot_s) * 0.3

    @property
    def target(self) -> int:
        """How many should wait now."""
        now = self._clock.monotonic()
        while self._asked and now - self._asked[0] > WINDOW_S:
            self._asked.popleft()
        per_s = len(self._asked) / WINDOW_S
        least = self._base if self._base else int(not self.forgotten)
        return least + math.ceil(per_s * self._boot_s * 2) * bool(self._asked)
