"""Moves the spare that waits for a run into a control group of its own, off every run's path."""

from __future__ import annotations

import asyncio

from codegen_mcp.sandbox.cgroup import RunGroups

REST_S = 0.005
"""How long a spare waits before it is moved: where runs follow each other at once, the moves would
only be late, and the session's counters tell the runs apart."""


class SpareMover:
    """One sandbox's. Without groups for runs it does nothing."""

    def __init__(self, groups: RunGroups | None) -> None:
        self._groups = groups
        self._timer: asyncio.TimerHandle | None = None
        self._moves: set[asyncio.Future[bool]] = set()

    def new_spare(self, number: int, pid: int) -> None:
        """Have it moved soon, unless a run or another spare comes first."""
        if self._groups is not None:
            self._stop()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(REST_S, self._move, self._groups, number, pid)

    def begin(self, number: int) -> None:
        """The spare became a run."""
        self._stop()
        if self._groups is not None:
            self._groups.begin(number)

    def kill(self) -> None:
        """End the run's processes at once where it has a group."""
        if self._groups is not None:
            self._groups.kill()

    def end(self) -> None:
        """The run is over."""
        if self._groups is not None:
            self._groups.end()

    async def aclose(self) -> None:
        """Return when nothing is moved any more."""
        self._stop()
        if self._moves:
            await asyncio.wait(self._moves)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _move(self, groups: RunGroups, number: int, pid: int) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        move = loop.run_in_executor(None, groups.prepare, number, pid)
        self._moves.add(move)
        move.add_done_callback(self._moved)

    def _moved(self, move: asyncio.Future[bool]) -> None:
        self._moves.discard(move)
        if not move.cancelled():
            move.exception()  # what cannot be moved runs in the session's group
