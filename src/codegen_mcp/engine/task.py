"""One task: its states, its output and progress for readers, and its one end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.limits import KIB
from codegen_mcp.core.task import EndedBy, Stream, TaskStatus
from codegen_mcp.engine.base import (
    ErrorEvent,
    OnDisconnect,
    ProgressEvent,
    ResultEvent,
    TaskView,
)
from codegen_mcp.engine.no_output import NoOutput
from codegen_mcp.engine.output import OutputJournal

KEPT_PROGRESS = 64
"""Progress of a task that a later reader is still told, newest last."""
_TEXT_CHARACTERS = 4 * KIB
"""Longest stage or message of a progress report; the rest is cut."""

TaskEnd = ResultEvent | ErrorEvent


class TaskState(StrEnum):
    """What a task is doing."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = {
    TaskState.QUEUED: frozenset({TaskState.RUNNING, TaskState.FINISHED}),
    TaskState.RUNNING: frozenset({TaskState.FINISHED}),
    TaskState.FINISHED: frozenset(),
}
"""Allowed moves; queued to finished is a cancel before the start, or arguments that are wrong."""


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Who ended a task early, for its remedy."""

    remedy: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the line of a finished task lies in the session's journal."""

    offset: int
    length: int


@dataclass(slots=True, kw_only=True)
class TaskFacts:
    """What is known of a task from its admission on; never changed."""

    task_id: str
    session_id: str
    tool: str
    sequence: int
    fingerprint: str
    submitted_at_ms: int


class Task:
    """Shared by the coroutine that runs it and any number of readers, in one event loop."""

    __slots__ = (
        "_body",
        "_ended_by",
        "_progress",
        "_reported",
        "_settled",
        "_status",
        "cancellation",
        "end",
        "facts",
        "finished_at_ms",
        "kept",
        "logged",
        "on_disconnect",
        "output",
        "place",
        "printed",
        "record_bytes",
        "started_at_ms",
        "state",
    )

    def __init__(
        self,
        facts: TaskFacts,
        output: OutputJournal | NoOutput | None,
        on_disconnect: OnDisconnect = OnDisconnect.DETACH,
    ) -> None:
        self.facts = facts
        self.kept = True
        """False: repeating it is harmless, so a small answer stays in memory alone."""
        self.output = output
        """None when its output was lost with a dead worker."""
        self.on_disconnect = on_disconnect
        self.state = TaskState.QUEUED
        self.cancellation: Cancellation | None = None
        self.end: TaskEnd | None = None
        """None while it is not finished, and when it must be read from the journal."""
        self.place: Place | None = None
        self.record_bytes = 0
        """Size of its record, counted against the session's bound."""
        self.started_at_ms = 0
        self.finished_at_ms = 0
        self.printed = {Stream.STDOUT: 0, Stream.STDERR: 0}
        """Bytes of each stream, set at the end."""
        self.logged = {Stream.STDOUT: 0, Stream.STDERR: 0}
        """Those of them that readers could have, set at the end."""
        self._body: asyncio.Task[None] | None = None
        self._settled = False
        self._status = TaskStatus.UNSPECIFIED
        self._ended_by: EndedBy | None = None
        self._progress: deque[ProgressEvent] = deque(maxlen=KEPT_PROGRESS)
        self._reported = 0

    @property
    def task_id(self) -> str:
        """Its id."""
        return self.facts.task_id

    @property
    def finished(self) -> bool:
        """Whether it has its end."""
        return self.state is TaskState.FINISHED

    @property
    def status(self) -> TaskStatus:
        """How it ended; UNSPECIFIED while it has not."""
        return self._status

    @property
    def ended_by(self) -> EndedBy | None:
        """Why it ended; None while it has not, and for an error."""
        return self._ended_by

    # --- the coroutine that runs it -----------------------------------------------------------

    def entered(self, body: asyncio.Task[None]) -> None:
        """Note who runs it: from here on a cancel interrupts that."""
        self._body = body

    def start(self, now_ms: int) -> None:
        """Move to running."""
        self._move(TaskState.RUNNING)
        self.started_at_ms = now_ms

    def settle(self) -> None:
        """Its end is decided: no cancel reaches it any more."""
        self._settled = True
        self._body = None

    def finish(self, end: TaskEnd, now_ms: int) -> None:
        """Give it its one end; readers are woken."""
        self._move(TaskState.FINISHED)
        self._settled = True
        self.end = end
        self.finished_at_ms = now_ms
        if isinstance(end, ResultEvent):
            self._status, self._ended_by = end.status, end.metadata.ended_by
        else:
            self._status = TaskStatus.FAILURE
        if self.output is not None:
            self.output.end()
            if self.output.written:
                self.printed = {stream: self.output.printed(stream) for stream in Stream}
                self.logged = {stream: self.output.logged(stream) for stream in Stream}

    def request_cancel(self, remedy: str) -> bool:
        """Have it end as cancelled; False when it is past that or somebody did so before."""
        if self._settled or self.cancellation is not None:
            return False
        self.cancellation = Cancellation(remedy)
        if self.output is not None:
            self.output.release()
        if self._body is not None:
            self._body.cancel()
        return True

    def report(self, percent: int, stage: str, message: str) -> None:
        """Tell readers how far it is."""
        event = ProgressEvent(
            percent=min(max(percent, 0), 100),
            stage=stage[:_TEXT_CHARACTERS],
            message=message[:_TEXT_CHARACTERS],
        )
        self._progress.append(event)
        self._reported += 1
        if self.output is not None:
            self.output.wake()

    # --- readers ------------------------------------------------------------------------------

    def progress_since(self, seen: int) -> tuple[list[ProgressEvent], int]:
        """Return the reports after the first ``seen`` ones, and how many there were in all."""
        new = self._reported - seen
        if new <= 0:
            return [], self._reported
        return list(self._progress)[-new:], self._reported

    def left(self) -> None:
        """A reader was detached; when the last one leaves early, ``on_disconnect`` decides."""
        alone = self.output is not None and not self.output.readers
        if alone and self.on_disconnect is OnDisconnect.CANCEL and not self._settled:
            self.request_cancel(
                "cancelled because its last reader disconnected; submit it with on_disconnect "
                "DETACH to let it go on, and attach again"
            )

    def view(self, now_ms: int) -> TaskView:
        """Describe it as it is now."""
        output = None if self.finished else self.output
        printed = self.printed if output is None else {s: output.printed(s) for s in Stream}
        until = self.finished_at_ms if self.finished else now_ms
        return TaskView(
            task_id=self.facts.task_id,
            session_id=self.facts.session_id,
            tool=self.facts.tool,
            state=self.state.value,
            status=self._status,
            progress=self._progress[-1] if self._progress else None,
            elapsed_ms=max(until - (self.started_at_ms or self.facts.submitted_at_ms), 0),
            submitted_at_ms=self.facts.submitted_at_ms,
            ended_by=self._ended_by,
            stdout_bytes=printed[Stream.STDOUT],
            stderr_bytes=printed[Stream.STDERR],
        )

    def _move(self, to: TaskState) -> None:
        if to not in TRANSITIONS[self.state]:
            raise WrongState(f"a task that is {self.state} cannot become {to}")
        self.state = to
