"""What goes on in a session: its tasks, how to end them, and when it was last used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.engine.file_gate import FileGate

log = structlog.get_logger()

Cancel = Callable[[str], object]
"""Ends one task; takes the reason. Returns at once, the task then ends soon."""


class Activity:
    """Counts tasks and file calls under way and remembers the last use."""

    def __init__(self, clock: Clock, *, last_ms: int | None = None) -> None:
        self._clock = clock
        self._cancels: dict[object, Cancel | None] = {}
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._uses = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._closed: WorkerError | None = None
        self._cut = False
        self.files = FileGate()
        """File calls that change something pass it."""
        self._last = clock.monotonic()
        self.last_ms = clock.unix_ms() if last_ms is None else last_ms
        """Unix milliseconds of the last use."""

    @property
    def active(self) -> int:
        """Tasks that run or wait."""
        return len(self._cancels)

    @property
    def busy(self) -> bool:
        """Whether a task or a file call is under way."""
        return bool(self._cancels or self._uses)

    @property
    def idle_s(self) -> float:
        """Seconds since the last use; 0 while something is under way."""
        return 0.0 if self.busy else self._clock.monotonic() - self._last

    def touch(self) -> None:
        """Note a use now."""
        self._last = self._clock.monotonic()
        self.last_ms = self._clock.unix_ms()

    @contextmanager
    def task(self, cancel: Cancel | None) -> Iterator[None]:
        """Count a task for as long as the block lasts."""
        key = object()
        self._cancels[key] = cancel
        self._quiet.clear()
        self.touch()
        try:
            yield
        finally:
            del self._cancels[key]
            self.touch()
            if not self._cancels:
                self._quiet.set()

    @contextmanager
    def use(self) -> Iterator[None]:
        """Count a call on the session's files, which is no task but keeps it from expiring.

        Raises:
            WorkerError: ``close`` was called.
        """
        if self._closed is not None:
            raise self._closed
        self._uses += 1
        self._unused.clear()
        self.touch()
        try:
            yield
        finally:
            self._uses -= 1
            self.touch()
            if not self._uses:
                self._unused.set()

    def close(self, error: WorkerError) -> None:
        """Refuse further ``use``; what is under way goes on until ``cancel_all``."""
        self._closed = error

    def check_uncut(self) -> None:
        """Raise what ``close`` was given, once ``cancel_all`` was called."""
        if self._cut and self._closed is not None:
            raise self._closed

    async def quiet(self) -> None:
        """Return when no task is under way."""
        await self._quiet.wait()

    async def still(self) -> None:
        """Return when neither a task nor a file call is under way."""
        while self.busy:
            await self._quiet.wait()
            await self._unused.wait()

    def cancel_all(self, reason: str) -> None:
        """Ask every task to end, and file calls at their next step."""
        self._cut = True
        for cancel in list(self._cancels.values()):
            if cancel is not None:
                try:
                    cancel(reason)
                except Exception:
                    log.exception("session.cancel_failed")
