"""Moments in which a session stands still: for checkpoints and forks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from codegen_mcp.core.errors import NotFound, WrongState
from codegen_mcp.engine.file_gate import FileGate
from codegen_mcp.engine.run_line import Line
from codegen_mcp.sandbox.base import Sandbox


@dataclass(frozen=True, slots=True)
class Stillness:
    """How a session came to stand still."""

    how: str
    """``idle`` (nothing ran), ``frozen`` (by the control group) or ``stopped`` (by signals: not at
    one moment)."""
    since: float
    """Monotonic seconds, before the first process was stopped."""


class Pause:
    """Stops what changes one session's files."""

    def __init__(
        self, session_id: str, line: Line, files: FileGate, sandbox: Callable[[], Sandbox | None]
    ) -> None:
        self._session_id = session_id
        self._line = line
        self._files = files
        self._sandbox = sandbox

    @asynccontextmanager
    async def still(self, *, freeze: bool) -> AsyncIterator[Stillness]:
        """Nothing of the session runs or changes files inside; tasks and calls wait.

        Args:
            freeze: Freeze a run that is under way; else the session must be at rest.

        Raises:
            WrongState: A run is under way and may not or cannot be frozen.
        """
        async with self._files.hold():
            place = self._line.hold()
            if place is not None:
                try:
                    yield Stillness("idle", time.monotonic())
                finally:
                    place.leave()
                return
            sandbox = self._sandbox()
            if not freeze or sandbox is None:
                raise busy(self._session_id)
            since = time.monotonic()
            async with frozen(sandbox) as how:
                yield Stillness(how, since)


@asynccontextmanager
async def frozen(sandbox: Sandbox) -> AsyncIterator[str]:
    """Freeze a sandbox inside; yields ``frozen`` or ``stopped`` (by signals, not at one moment).

    Raises:
        WrongState: It cannot be stopped at all.
    """
    try:
        report = await sandbox.freeze()
        if not report.frozen and report.how != "stopped":
            raise WrongState(
                "the processes of the session could not be stopped for a consistent checkpoint; "
                "take it when no task runs",
                reason="NOT_FROZEN",
            )
        yield "frozen" if report.how == "cgroup" else "stopped"
    finally:
        await sandbox.thaw()


def busy(session_id: str) -> WrongState:
    """The answer where a session must be at rest and is not."""
    return WrongState(
        f"session {session_id!r} runs code; wait for its tasks to end, or cancel them",
        reason="SESSION_BUSY",
    )


def checkpoint_under_way(session_id: str) -> WrongState:
    """The answer to a second checkpoint while the first is being made."""
    return WrongState(
        f"a checkpoint of session {session_id!r} is being made; wait for its end",
        reason="CHECKPOINT_UNDER_WAY",
    )


def not_found(session_id: str) -> NotFound:
    """Return the one answer for a session that never was, and for one that is gone."""
    return NotFound(
        f"there is no session {session_id[:80]!r} on this worker; create one, or list those that "
        "there are",
        reason="SESSION_NOT_FOUND",
    )
