"""The one thread that has the database: steps go in, and come back when they are durable."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from codegen_mcp.coordinator.directory.sqlite_file import open_file, translated
from codegen_mcp.core.errors import StoreUnavailable

T = TypeVar("T")
Step = Callable[[sqlite3.Connection], T]

BATCH = 256
"""Steps that share a transaction, and so one fsync, at most."""

WAITING = 20_000
"""Steps that wait at most: behind a disk that hangs, nothing grows without end."""


@dataclass(slots=True)
class _Job:
    step: Step[Any]
    answer: asyncio.Future[Any]


@dataclass(slots=True)
class _Done:
    job: _Job
    value: Any = None
    error: BaseException | None = None


class SqliteThread:
    """An async context manager that owns the thread, the connection and the lock on the file.

    Steps that wait together are done in one transaction, each in a savepoint of its own, so that
    one that fails takes nothing of the others with it. All are answered after the commit.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="directory", daemon=True)
        self._open = False
        self._loop: asyncio.AbstractEventLoop
        self._opened: asyncio.Future[None]

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._opened = self._loop.create_future()
        self._thread.start()
        try:
            await asyncio.shield(self._opened)
        except BaseException:
            await self._stop()
            raise
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    async def run(self, step: Step[T]) -> T:
        """Do a step in a transaction; it is durable when this returns.

        A caller that is cancelled meanwhile does not undo it.

        Raises:
            StoreUnavailable: The file cannot be written to, or is closed; the step may have had
            its effect.
            Corrupt: The file is damaged.
            WorkerError: Of the step, which then had no effect.
        """
        if not self._open:
            raise self._closed()
        if self._jobs.qsize() >= WAITING:
            raise StoreUnavailable(
                f"the directory {str(self._path)!r} is overloaded; try again later"
            )
        job: _Job = _Job(step, self._loop.create_future())
        self._jobs.put(job)
        answer: T = await job.answer
        return answer

    def _closed(self) -> StoreUnavailable:
        return StoreUnavailable(f"the directory {str(self._path)!r} is closed")

    async def _stop(self) -> None:
        """What was put in before is still done and answered."""
        self._open = False
        self._jobs.put(None)
        await asyncio.shield(asyncio.to_thread(self._thread.join))

    def _main(self) -> None:
        try:
            with open_file(self._path) as connection:
                self._tell(self._deliver_opened)
                while self._work(connection):
                    pass
            self._tell(self._deliver_closed, None)
        except Exception as error:
            self._tell(self._deliver_closed, error)

    def _work(self, connection: sqlite3.Connection) -> bool:
        """Do what waits; False after the last."""
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == BATCH:
                break
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
        if jobs:
            self._tell(self._deliver, self._transact(connection, jobs))
        return job is not None

    def _transact(self, connection: sqlite3.Connection, jobs: list[_Job]) -> list[_Done]:
        try:
            connection.execute("BEGIN IMMEDIATE")
            done = [self._step(connection, job) for job in jobs]
            connection.execute("COMMIT")
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            fault = translated(self._path, error) if isinstance(error, sqlite3.Error) else error
            return [_Done(job, error=fault) for job in jobs]
        return done

    def _step(self, connection: sqlite3.Connection, job: _Job) -> _Done:
        connection.execute("SAVEPOINT step")
        try:
            value = job.step(connection)
        except Exception as error:
            if isinstance(error, sqlite3.Error):
                if not connection.in_transaction:
                    raise  # rolled back as a whole, as when the disk is full
                fault: Exception = translated(self._path, error)
            else:
                fault = error
            connection.execute("ROLLBACK TO step")
            connection.execute("RELEASE step")
            return _Done(job, error=fault)
        connection.execute("RELEASE step")
        return _Done(job, value)

    def _tell(self, deliver: Callable[..., None], *what: object) -> None:
        # A loop that was closed has nobody who waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(deliver, *what)

    def _deliver_opened(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _deliver_closed(self, error: Exception | None) -> None:
        """The thread ends: nothing that was put in later is left without an answer."""
        self._open = False
        if error is not None and not self._opened.done():
            self._opened.set_exception(error)
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None and not job.answer.done():
                    job.answer.set_exception(self._closed())

    def _deliver(self, done: list[_Done]) -> None:
        for one in done:
            if one.job.answer.done():
                continue
            if one.error is None:
                one.job.answer.set_result(one.value)
            else:
                one.job.answer.set_exception(one.error)
