"""Who has fallen silent, by what an observer has heard itself.

A beat is a counter, and nobody's wall clock is compared with another's: a start is silent when its
counter was read, and read again ``lost_after_s`` later by the observer's own monotonic clock,
unchanged, and the observer was listening in between. Whatever keeps it from listening (it was
stopped, the machine slept, the directory did not answer) makes it begin anew: it must never hold
its own absence against the workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from codegen_mcp.coordinator.directory.base import Owner

GAP_PART = 1 / 3
"""Of ``lost_after_s``: a longer gap between two readings restarts every window."""


@dataclass(slots=True)
class _Window:
    """Since when a counter is known to have been what it is."""

    beats: int
    since: float


class Silence:
    """What one observer has heard. Times are seconds of one monotonic clock."""

    def __init__(self, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._windows: dict[Owner, _Window] = {}
        self._last_answer: float | None = None

    def hear(
        self, beats: Mapping[Owner, int], *, asked: float, answered: float
    ) -> dict[Owner, int]:
        """Take in one reading; the starts that are silent, with the counter they stopped at.

        Args:
            beats: Every live start, with its counter.
            asked: When the reading was begun: the counters are no older than that.
            answered: When it had come back: they are no newer than that.
        """
        last = asked if self._last_answer is None else self._last_answer
        if answered - last > self._lost_after_s * GAP_PART:
            self._windows.clear()
        self._last_answer = answered
        self._windows = {
            owner: known
            if (known := self._windows.get(owner)) is not None and known.beats == count
            else _Window(count, answered)
            for owner, count in beats.items()
        }
        return {
            owner: window.beats
            for owner, window in self._windows.items()
            if asked - window.since >= self._lost_after_s
        }

    def restart(self) -> None:
        """Something kept beats from being counted: begin all windows anew."""
        self._windows.clear()
