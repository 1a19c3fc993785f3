"""The task records of all sessions of this worker: the pool's ``TaskRecords``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from codegen_mcp.core.clock import Clock
from codegen_mcp.engine.task_book import TaskBook
from codegen_mcp.engine.task_config import TaskConfig
from codegen_mcp.engine.task_journal import FILE_NAME

log = structlog.get_logger()


class TaskLedger:
    """Shared by the session pool, which recovers and forgets, and the task executor."""

    def __init__(self, clock: Clock, config: TaskConfig | None = None) -> None:
        self._clock = clock
        self.config = config or TaskConfig()
        self._books: dict[str, TaskBook] = {}

    def book(self, session_id: str, directory: Path) -> TaskBook:
        """Return a live session's tasks."""
        book = self._books.get(session_id)
        if book is None:
            book = self._books[session_id] = self._new(session_id, directory)
        return book

    def recover(self, session_id: str, directory: Path) -> Sequence[str]:
        """Read a dead worker's records; never raises."""
        book = self._new(session_id, directory)
        try:
            book.spools.clear()
            recent = book.recover()
        except Exception as error:  # the session must not be lost over its records
            log.error("task.records_unreadable", session_id=session_id, error=str(error))
            book.close()
            with suppress(OSError):
                os.replace(directory / FILE_NAME, directory / f"{FILE_NAME}.unreadable")
            book, recent = self._new(session_id, directory), ()
        self._books[session_id] = book
        return recent

    def forget(self, session_id: str) -> None:
        """Close the files of a session that is gone, and whose directory is deleted by its owner.

        Readers that are attached keep what is in memory.
        """
        book = self._books.pop(session_id, None)
        if book is not None:
            book.close()

    def close(self) -> None:
        """Close every file; records stay for the next worker, output is dropped."""
        for book in self._books.values():
            book.close()
            book.spools.clear()
        self._books.clear()

    def _new(self, session_id: str, directory: Path) -> TaskBook:
        return TaskBook(session_id, directory, self.config, self._clock)
