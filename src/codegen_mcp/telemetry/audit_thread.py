"""The one thread that has the audit log's files: work goes in, and comes back when it is done."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

_Job = tuple[Callable[..., None], tuple[Any, ...], "asyncio.Future[None]"]


class AuditThread:
    """Does one thing after the other.

    Every call of the log passes it twice: a turn here costs half of an executor's, whose futures
    any thread may wait for.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="audit", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do it after what was asked before; a caller that leaves does not undo it.

        Raises:
            Exception: Of the work.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        done: asyncio.Future[None] = self._loop.create_future()
        self._jobs.put((work, arguments, done))
        await done

    def stop(self) -> None:
        """End when what was asked is done; the last thing to call."""
        self._jobs.put(None)

    def _main(self) -> None:
        assert self._loop is not None
        while (job := self._jobs.get()) is not None:
            work, arguments, done = job
            error: Exception | None = None
            try:
                work(*arguments)
            except Exception as failure:
                error = failure
            # A loop that was closed has nobody who waits any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_deliver, done, error)
            del job, work, arguments, done, error  # not kept until the next one comes


def _deliver(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
