"""The tasks of one session: those under way, and the records of the last that finished."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import AlreadyExists, Corrupt, Full, LimitExceeded, NotFound
from codegen_mcp.core.limits import KIB
from codegen_mcp.core.task import EndedBy, Stream, TaskStatus
from codegen_mcp.engine.base import ResultEvent, TaskMetadata
from codegen_mcp.engine.output_spool import SpoolDirectory
from codegen_mcp.engine.sequences import Sequences
from codegen_mcp.engine.task import Place, Task, TaskEnd, TaskFacts
from codegen_mcp.engine.task_config import TaskConfig
from codegen_mcp.engine.task_journal import FILE_NAME, TaskJournal
from codegen_mcp.engine.task_lines import (
    DAMAGED,
    end_line,
    header_line,
    read_end,
    read_facts,
    read_header,
    start_line,
)
from codegen_mcp.sandbox.verdict import EXIT_KILLED
from codegen_mcp.tools.base import ToolModel

log = structlog.get_logger()

MEMORY_ONLY_BYTES = 16 * KIB
"""Longest answer of a task that need not be kept which is not written down."""
RETRY_AFTER_S = 5.0
_SMALL = 64 * KIB
"""A line that is parsed at once; longer ones in a thread."""
LOST = (
    "the worker ended, or the session was saved and restored, while this task waited or ran, which "
    "may have had effects: check the workspace (files are as they lay), then submit it under a new "
    "task_id"
)


class TaskBook:
    """Owned by the ledger; in one event loop."""

    def __init__(self, session_id: str, directory: Path, config: TaskConfig, clock: Clock) -> None:
        self._session_id = session_id
        self._config = config
        self._clock = clock
        self._journal = TaskJournal(directory / FILE_NAME)
        self._tasks: dict[str, Task] = {}
        self._finished: deque[Task] = deque()
        self._record_bytes = 0
        self._in_memory: deque[Task] = deque()
        self._memory_bytes = 0
        self._unspooled: deque[Task] = deque()
        self._unspooled_bytes = 0
        self.closed = False
        """The session is gone: nothing can be read back from disk."""
        self.sequences = Sequences()
        self.spools = SpoolDirectory(directory, config.output)
        self._unwritten: deque[Task] = deque()
        """Ended, and not on disk because it was full."""

    def __iter__(self) -> Iterator[Task]:
        """Oldest first."""
        return iter(self._tasks.values())

    def find(self, task_id: str) -> Task | None:
        """Return the task, None when there is no record."""
        return self._tasks.get(task_id)

    def get(self, task_id: str) -> Task:
        """Return the task.

        Raises:
            NotFound: There is no record (any more).
        """
        task = self._tasks.get(task_id)
        if task is None:
            raise self._no_record(task_id)
        return task

    def same(self, task_id: str, fingerprint: str) -> bool:
        """Whether this request was made before.

        Raises:
            AlreadyExists: The id was, with other content.
        """
        task = self._tasks.get(task_id)
        if task is None:
            return False
        if task.facts.fingerprint != fingerprint:
            raise AlreadyExists(
                f"task_id {task_id!r} was used before with another tool, arguments, environment, "
                "constraints or sequence; choose a new one, or repeat the request unchanged"
            )
        return True

    def admit(self, task: Task) -> None:
        """Note a new task, on disk before it may do anything.

        Raises:
            Full: It has a sequence number, of which the disk has no room for a record.
        """
        self._catch_up()
        header = header_line(self.sequences.last)
        noted = not task.kept or self._append(start_line(task.facts), header) is not None
        if task.facts.sequence and not noted:
            raise Full(
                f"the disk of the worker is full: task {task.task_id!r} cannot be recorded, so "
                "that its retry might run it twice; free space on the host, or send it without a "
                "sequence",
                reason="DISK_FULL",
                retry_after_s=RETRY_AFTER_S,
            )
        self.sequences.add(task.facts.sequence, task.task_id)
        self._tasks[task.task_id] = task

    def record(self, task: Task, end: TaskEnd) -> None:
        """Note an end, on disk before anybody is told.

        Raises:
            LimitExceeded: The result is too large to be an answer.
            ValueError: It cannot be written.
        """
        if not task.kept and (size := _rough_bytes(end)) <= MEMORY_ONLY_BYTES:
            task.record_bytes = size
            return
        line = end_line(task.facts, end, _logged(task))
        if len(line) > self._config.result_bytes:
            raise LimitExceeded(
                f"the result of {task.facts.tool!r} has {len(line)} bytes, above the maximum of "
                f"{self._config.result_bytes}; ask for less at once, or download the file"
            )
        self._catch_up()
        task.place = self._append(line, header_line(self.sequences.last))
        task.record_bytes = len(line)
        if task.place is None:
            self._unwritten.append(task)

    def _append(self, line: bytes, header: bytes) -> Place | None:
        """Write a line; the file begins with its header, or not at all."""
        if not self._journal.size and self._journal.append(header) is None:
            return None
        return self._journal.append(line)

    def _catch_up(self) -> None:
        """Write ends that a full disk had refused, once there is room again."""
        while self._unwritten:
            task = self._unwritten[0]
            if task.end is not None and self._tasks.get(task.task_id) is task:
                line = end_line(task.facts, task.end, _logged(task))
                task.place = self._append(line, header_line(self.sequences.last))
                if task.place is None:
                    return
            self._unwritten.popleft()

    def finished(self, task: Task) -> None:
        """Count a task that has its end, and forget the oldest beyond the bounds."""
        self._finished.append(task)
        self._record_bytes += task.record_bytes
        while len(self._finished) > self._config.records or (
            self._record_bytes > self._config.record_bytes and len(self._finished) > 1
        ):
            self._forget(self._finished.popleft())
        if task.end is not None:
            self._in_memory.append(task)
            self._memory_bytes += task.record_bytes
        while self._memory_bytes > self._config.memory_bytes and len(self._in_memory) > 1:
            oldest = self._in_memory.popleft()
            self._memory_bytes -= oldest.record_bytes
            if oldest.place is not None:
                oldest.end = None
        if task.output is not None and task.output.memory_bytes:
            self._unspooled.append(task)
            self._unspooled_bytes += task.output.memory_bytes

    @property
    def untidy(self) -> bool:
        """Whether ``tidy`` has something to do."""
        return (
            self._unspooled_bytes > self._config.output.finished_memory_bytes
            or self._journal.needs_compaction(self._record_bytes)
        )

    async def tidy(self) -> None:
        """Move output of finished tasks to disk, and rewrite a journal that is mostly stale."""
        while self._unspooled_bytes > self._config.output.finished_memory_bytes:
            oldest = self._unspooled.popleft()
            assert oldest.output is not None
            self._unspooled_bytes -= oldest.output.memory_bytes
            await oldest.output.settle()
        if self._journal.needs_compaction(self._record_bytes):
            under_way = [task for task in self._tasks.values() if not task.finished]
            head = header_line(self.sequences.last)
            head += b"".join(start_line(task.facts) for task in under_way)
            await self._journal.compact(head, lambda: self._finished)

    async def end_of(self, task: Task, model: type[ToolModel] | None) -> TaskEnd:
        """Return a finished task's end, read back when it is not in memory.

        Raises:
            NotFound: Its record is gone.
            Corrupt: It cannot be read.
        """
        if task.end is not None:
            return task.end
        if task.place is None or self.closed:
            raise self._no_record(task.task_id)
        try:
            line = self._journal.read(task.place)
            if len(line) < _SMALL:
                return read_end(json.loads(line), model)
            return await asyncio.to_thread(lambda: read_end(json.loads(line), model))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.exception("task.record_unreadable", task_id=task.task_id)
            raise Corrupt(f"the record of task {task.task_id!r} cannot be read") from error

    def recover(self) -> Sequence[str]:
        """Read what a dead worker wrote; tasks that were under way are WORKER_LOST now.

        Returns all ids, newest first.

        Raises:
            Corrupt: The file is not ours, or of a newer format.
            OSError: It cannot be read.
        """
        begun: dict[str, Task] = {}
        ended: dict[str, Task] = {}
        for number, line in enumerate(self._journal.load()):
            try:
                fields = json.loads(line.data)
                if number == 0:
                    self.sequences = Sequences(read_header(fields))
                    continue
                facts = read_facts(self._session_id, fields)
                task = begun.setdefault(facts.task_id, Task(facts, None))
                if "end" in fields and not task.finished:
                    self._restore(task, fields, line.place)
                    ended[task.task_id] = task
            except DAMAGED as error:
                if number == 0 and isinstance(error, Corrupt):
                    raise
                log.warning("task.record_damaged", session_id=self._session_id, line=number)
        for task in sorted(begun.values(), key=lambda task: task.facts.submitted_at_ms):
            self._tasks[task.task_id] = task
            self.sequences.add(task.facts.sequence, task.task_id)
        for task in ended.values():
            self.finished(task)
        for task in begun.values():
            if not task.finished:
                end = _lost(task.facts, self._clock.unix_ms())
                self.record(task, end)
                task.finish(end, self._clock.unix_ms())
                self.finished(task)
        return list(reversed(self._tasks))

    def close(self) -> None:
        """Let go of files; they stay where they are."""
        self.closed = True
        self._journal.close()

    def _restore(self, task: Task, fields: Mapping[str, Any], place: Place) -> None:
        end = read_end(fields, None)
        logged = fields.get("logged", (0, 0))
        at_ms = task.facts.submitted_at_ms
        if isinstance(end, ResultEvent):
            at_ms = end.metadata.end_time_ms
            task.started_at_ms = end.metadata.start_time_ms
            task.printed = {
                Stream.STDOUT: end.metadata.stdout_bytes,
                Stream.STDERR: end.metadata.stderr_bytes,
            }
        task.logged = {Stream.STDOUT: int(logged[0]), Stream.STDERR: int(logged[1])}
        task.finish(end, at_ms)
        task.end = None  # its value was not read
        task.place = place
        task.record_bytes = place.length

    def _forget(self, task: Task) -> None:
        self._record_bytes -= task.record_bytes
        del self._tasks[task.task_id]
        self.sequences.forget(task.facts.sequence)
        task.place = None
        if task.output is not None:
            task.output.drop()

    def _no_record(self, task_id: str) -> NotFound:
        return NotFound(
            f"there is no task {task_id[:80]!r} in session {self._session_id!r}; the last "
            f"{self._config.records} that finished are kept",
            reason="TASK_NOT_FOUND",
        )


def _rough_bytes(end: TaskEnd) -> int:
    """About how much memory an end takes; more than is kept in memory where it is not flat."""
    size = 512
    if not isinstance(end, ResultEvent) or end.value is None:
        return size
    for value in end.value.__dict__.values():
        if isinstance(value, str | bytes):
            size += len(value)
        elif value is not None and not isinstance(value, int | float):
            return MEMORY_ONLY_BYTES + 1
    return size


def _logged(task: Task) -> tuple[int, int]:
    """How much of each stream is in its log."""
    output = task.output
    if output is None:
        return task.logged[Stream.STDOUT], task.logged[Stream.STDERR]
    return output.logged(Stream.STDOUT), output.logged(Stream.STDERR)


def _lost(facts: TaskFacts, now_ms: int) -> ResultEvent:
    return ResultEvent(
        status=TaskStatus.FAILURE,
        tool=facts.tool,
        value=None,
        metadata=TaskMetadata(
            start_time_ms=facts.submitted_at_ms,
            end_time_ms=now_ms,
            exit_code=EXIT_KILLED,
            ended_by=EndedBy.WORKER_LOST,
            remedy=LOST,
        ),
    )
