"""What a session uses, from the kernel's counters; the CPU rate is a difference of two readings."""

from __future__ import annotations

import dataclasses

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.limits import Usage
from codegen_mcp.engine.slot import Slot

MIN_INTERVAL_S = 0.25
"""Readings closer than this say nothing about a rate: the kernel accounts in ticks."""


class UsageMeter:
    """Remembers the last readings of one session."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = Usage()
        self._last_at = -1e9
        self._rate_from: tuple[float, int] | None = None
        self._millicores = 0
        self._peak = 0
        self._gone_cpu_us = 0
        """CPU time of sandboxes that this session had before."""

    def start(self, cpu_us: int) -> None:
        """Let rates begin now, at what the sandbox has used before it was the session's."""
        self._rate_from = (self._clock.monotonic(), cpu_us)

    def restart(self) -> None:
        """A new sandbox counts from zero."""
        self._gone_cpu_us = self._last.cpu_us
        self._rate_from = None
        self._last_at = -1e9

    def read(self, slot: Slot, *, max_age_s: float) -> Usage:
        """Read the counters, unless they were read in the last ``max_age_s``.

        Infinite never reads them: the last reading, or nothing before the first.
        """
        now = self._clock.monotonic()
        if now - self._last_at < max_age_s:
            return self._last
        inside = slot.sandbox.usage() if slot.sandbox is not None else Usage()
        self._rate(now, inside.cpu_us)
        self._peak = max(self._peak, inside.memory_peak_bytes, inside.memory_bytes)
        self._last = dataclasses.replace(
            inside,
            memory_peak_bytes=self._peak,
            cpu_millicores=self._millicores,
            cpu_us=self._gone_cpu_us + inside.cpu_us,
            disk_bytes=slot.volume.usage().used_bytes,
        )
        self._last_at = now
        return self._last

    def _rate(self, now: float, cpu_us: int) -> None:
        if self._rate_from is None or cpu_us < self._rate_from[1]:
            self._rate_from = (now, cpu_us)
            self._millicores = 0
            return
        since, before = self._rate_from
        if now - since >= MIN_INTERVAL_S:
            self._millicores = round((cpu_us - before) / (now - since) / 1000)
            self._rate_from = (now, cpu_us)
