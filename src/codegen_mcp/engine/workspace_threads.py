"""Where long file work runs: threads whose work can be stopped, and is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from codegen_mcp.core.errors import Cancelled, WrongState

T = TypeVar("T")


class Stop:
    """Asks work in a thread to end early."""

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """The next ``check`` in the thread raises."""
        self._asked = True

    def check(self) -> None:
        """Call often, between two steps.

        Raises:
            Cancelled: The work is no longer wanted.
        """
        if self._asked:
            raise Cancelled("the file operation was stopped before its end")


class FileThreads:
    """Runs file work; cancelling the caller stops the thread and waits for it."""

    def __init__(self, executor: ThreadPoolExecutor | None) -> None:
        """Borrow ``executor``; None makes one of two threads at first need, ended by close."""
        self._executor = executor
        self._owned: ThreadPoolExecutor | None = None
        self._running: set[Stop] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._then: Callable[[], None] | None = None

    async def run(self, work: Callable[[Stop], T]) -> T:
        """Run ``work`` in a thread; when this returns or raises, the thread is done with it."""
        if self._closed:
            raise WrongState("the workspace is closed")
        stop = Stop()
        self._running.add(stop)
        self._idle.clear()
        try:
            job = self._pool().submit(work, stop)
            try:
                return await asyncio.shield(asyncio.wrap_future(job))
            except asyncio.CancelledError:
                stop.ask()
                if not job.cancel():
                    await _settled(job)
                raise
        finally:
            self._running.discard(stop)
            if not self._running:
                self._become_idle()

    def close(self, then: Callable[[], None]) -> None:
        """Refuse new work, ask what runs to stop, and call ``then`` when all of it has ended."""
        self._closed = True
        self._then = then
        for stop in self._running:
            stop.ask()
        if not self._running:
            self._become_idle()

    async def idle(self) -> None:
        """Return when nothing runs."""
        await self._idle.wait()

    def _become_idle(self) -> None:
        self._idle.set()
        then, self._then = self._then, None
        if then is not None:
            if self._owned is not None:
                self._owned.shutdown(wait=False)
                self._owned = None
            then()

    def _pool(self) -> ThreadPoolExecutor:
        if self._executor is not None:
            return self._executor
        if self._owned is None:
            self._owned = ThreadPoolExecutor(2, thread_name_prefix="workspace")
        return self._owned


async def _settled(job: Future[T]) -> None:
    """Wait for the thread even when cancelled once more; its result is not wanted."""
    waiter = asyncio.wrap_future(job)
    while not waiter.done():
        try:
            await asyncio.wait([waiter])
        except asyncio.CancelledError:
            continue
    if not waiter.cancelled():
        waiter.exception()
