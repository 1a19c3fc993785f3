"""Who may run code now: a line for each session, and one for the whole worker.

Both are first come, first served, and bounded: a place that cannot be had is refused at once.
asyncio.Semaphore is not used because it can neither refuse nor be closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from codegen_mcp.core.errors import Full, WorkerError


class Place:
    """A place in a line; has its turn once ``wait`` returns, until ``leave``."""

    __slots__ = ("_line", "_turn")

    def __init__(self, line: Line, turn: asyncio.Future[None] | None) -> None:
        self._line: Line | None = line
        self._turn = turn

    async def wait(self) -> None:
        """Wait for the turn. Cancelling leaves the line.

        Raises:
            WorkerError: The line was closed meanwhile, with the error it was closed with.
        """
        if self._turn is None:
            return
        try:
            await asyncio.shield(self._turn)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Give the turn, or the place in the line, to the next; idempotent."""
        line, self._line = self._line, None
        if line is not None:
            line._left(self._turn)


class Line:
    """``capacity`` turns at once; further ones wait, at most ``waiting_limit``."""

    def __init__(self, capacity: int, waiting_limit: int, what: str) -> None:
        self._capacity = capacity
        self._waiting_limit = waiting_limit
        self._what = what
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed: WorkerError | None = None

    @property
    def running(self) -> int:
        """Turns taken."""
        return self._running

    @property
    def waiting(self) -> int:
        """Places behind them."""
        return len(self._waiting)

    def join(self) -> Place:
        """Take the next place now; the order of the line is the order of these calls.

        Raises:
            Full: ``waiting_limit`` others wait already.
        """
        if self._closed is not None:
            raise self._closed
        if self._running < self._capacity:
            self._running += 1
            return Place(self, None)
        if len(self._waiting) >= self._waiting_limit:
            raise Full(
                f"{self._what} has {self._running} run(s) under way and {len(self._waiting)} "
                "waiting, which is its limit; wait for one to end and try again",
                reason="QUEUE_FULL",
                retry_after_s=1.0,
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        return Place(self, turn)

    def hold(self) -> Place | None:
        """Take every turn there is, if none is taken; None when one is. ``leave`` gives it back.

        For a line of capacity 1: what comes meanwhile waits.
        """
        if self._closed is not None:
            raise self._closed
        if self._running or self._capacity != 1:
            return None
        self._running += 1
        return Place(self, None)

    def close(self, error: WorkerError) -> None:
        """Turn everybody away who waits, and all who come; runs under way go on."""
        self._closed = error
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)
                turn.exception()  # a place that nobody waits on is no unhandled error

    def _left(self, turn: asyncio.Future[None] | None) -> None:
        if turn is not None and not turn.done():
            self._waiting.remove(turn)
            turn.cancel()
            return
        if turn is not None and (turn.cancelled() or turn.exception() is not None):
            return
        self._running -= 1
        while self._waiting and self._running < self._capacity:
            following = self._waiting.popleft()
            if not following.done():
                self._running += 1
                following.set_result(None)


class RunSlot:
    """One code run's right to run: a place in its session's line, then in the worker's.

    The place in the session's line is taken when this is made. Enter it with ``async with``; one
    that is never entered must be given back with ``abandon``.
    """

    __slots__ = ("_place", "_worker", "_worker_place")

    def __init__(self, session: Line, worker: Line) -> None:
        self._worker = worker
        self._place = session.join()
        self._worker_place: Place | None = None

    async def __aenter__(self) -> None:
        """Wait for the turn.

        Raises:
            Full: Too many sessions of this worker wait already.
            WorkerError: The session was destroyed meanwhile.
        """
        try:
            await self._place.wait()
            self._worker_place = self._worker.join()
            await self._worker_place.wait()
        except BaseException:
            self.abandon()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the next run."""
        self.abandon()

    def abandon(self) -> None:
        """Give the places back; idempotent."""
        if self._worker_place is not None:
            self._worker_place.leave()
        self._place.leave()
