"""Blocking file work in threads of a store's own, stopped when its caller is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from codegen_mcp.core.errors import StoreUnavailable

T = TypeVar("T")


class Stopped(Exception):
    """The caller was cancelled: the work ends here and undoes what it began."""


class StopFlag:
    """Tells work in a thread to end early."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask the work to end."""
        self._event.set()

    def check(self) -> None:
        """Raise Stopped when the caller was cancelled; work calls it between pieces."""
        if self._event.is_set():
            raise Stopped


class StoreThreads:
    """At most ``count`` pieces of blocking work at once.

    They are apart from the loop's own threads, so that large copies never hold up other file work.
    """

    def __init__(self, count: int = 4) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="store")
        self._closed = False

    async def run(self, work: Callable[[StopFlag], T]) -> T:
        """Run and wait for the end, also when cancelled: then the work is told to stop first.

        Raises:
            StoreUnavailable: The store was closed.
        """
        if self._closed:
            raise StoreUnavailable("the object store is closed")
        stop = StopFlag()
        job = self._pool.submit(work, stop)
        future = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop.set()
            job.cancel()
            while not future.done():
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    continue
            if not future.cancelled():
                future.exception()  # seen: it is the cancellation that is told
            raise

    async def aclose(self) -> None:
        """Wait for what runs; nothing more starts. Idempotent."""
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown)
