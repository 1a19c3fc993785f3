"""An engine in memory: the second implementation of ``engine.base``.

Sessions are entries of a dictionary and tools run in the worker's own process; code runs only
where a ``Runner`` is given. For tests of what lies above the engine, and proof that its interface
fits more than one thing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from codegen_mcp.core.errors import (
    AlreadyExists,
    Draining,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    UnknownTool,
)
from codegen_mcp.core.ids import check_task_id, new_task_id
from codegen_mcp.core.task import EndedBy, Stream, TaskStatus
from codegen_mcp.engine.base import (
    ErrorEvent,
    ProgressEvent,
    ResultEvent,
    TaskEvent,
    TaskMetadata,
    TaskSubmission,
    TaskView,
)
from codegen_mcp.engine.task_network import task_network
from codegen_mcp.testing.memory_checkpoints import MemoryCheckpoints
from codegen_mcp.testing.memory_sessions import MemorySessions
from codegen_mcp.testing.memory_task import MemoryContext, MemoryTask, Runner, no_code
from codegen_mcp.tools.base import Tool, ToolModel, ToolSpec


class MemoryTasks:
    """Tasks in a dictionary, all run at once."""

    def __init__(
        self, sessions: MemorySessions, tools: Sequence[Tool[Any, Any]], runner: Runner
    ) -> None:
        self._sessions = sessions
        self._tools = {tool.spec.name: tool for tool in tools}
        self._runner = runner
        self._tasks: dict[tuple[str, str], MemoryTask] = {}
        self._last: dict[str, int] = {}
        self._running: set[asyncio.Task[None]] = set()

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """Of every tool."""
        return [tool.spec for tool in self._tools.values()]

    async def submit(self, submission: TaskSubmission) -> str:
        """Start a task, or join the one that was."""
        session_id, sequence = submission.session_id, submission.sequence
        self._sessions.get(session_id)
        if self._sessions.draining:
            raise Draining("the engine takes no new work")
        task_id = check_task_id(submission.task_id) if submission.task_id else new_task_id()
        known = self._tasks.get((session_id, task_id))
        if known is not None:
            if known.submission != submission:
                raise AlreadyExists(f"task {task_id!r} was asked for with other content")
            return task_id
        self._check_sequence(session_id, sequence)
        task_network(None, submission)
        if submission.tool not in self._tools:
            names = ", ".join(sorted(self._tools))
            raise UnknownTool(f"there is no tool {submission.tool[:80]!r}; there are {names}")
        if sequence:
            self._last[session_id] = sequence
        task = self._tasks[session_id, task_id] = MemoryTask(task_id, submission)
        task.running = asyncio.create_task(self._run(task), name=f"memory-task {task_id}")
        self._running.add(task.running)
        task.running.add_done_callback(self._running.discard)
        self._sessions.task_changed(session_id, task_id, 1)
        return task_id

    async def events(
        self,
        task_id: str,
        session_id: str,
        *,
        stdout_offset: int | None = None,
        stderr_offset: int | None = None,
    ) -> AsyncIterator[TaskEvent]:
        """Follow one."""
        offsets = {Stream.STDOUT: stdout_offset or 0, Stream.STDERR: stderr_offset or 0}
        followed = self._get(task_id, session_id).follow(offsets)
        try:
            async for event in followed:
                yield event
        finally:
            await followed.aclose()  # type: ignore[attr-defined]  # it is a generator

    async def cancel(self, task_id: str, session_id: str, reason: str) -> tuple[bool, str]:
        """Cancel one."""
        task = self._get(task_id, session_id)
        if task.end is not None or task.running is None:
            return False, "finished"
        task.running.cancel()
        return True, "running"

    def status(self, task_id: str, session_id: str) -> TaskView:
        """Look one up."""
        task = self._get(task_id, session_id)
        updates = [event for event in task.events if isinstance(event, ProgressEvent)]
        end = task.end
        status = TaskStatus.UNSPECIFIED if end is None else TaskStatus.FAILURE
        return TaskView(
            task_id=task_id,
            session_id=session_id,
            tool=task.submission.tool,
            state="running" if end is None else "finished",
            status=end.status if isinstance(end, ResultEvent) else status,
            progress=updates[-1] if updates else None,
            elapsed_ms=int((time.time() - task.began) * 1000),
            submitted_at_ms=int(task.began * 1000),
            ended_by=end.metadata.ended_by if isinstance(end, ResultEvent) else None,
            stdout_bytes=len(task.printed[Stream.STDOUT]),
            stderr_bytes=len(task.printed[Stream.STDERR]),
        )

    def list(self, session_id: str) -> Sequence[TaskView]:
        """Newest first."""
        self._sessions.get(session_id)
        ids = [task_id for owner, task_id in self._tasks if owner == session_id]
        return [self.status(task_id, session_id) for task_id in reversed(ids)]

    def last_sequence(self, session_id: str) -> int:
        """Highest of a session."""
        return self._last.get(session_id, 0)

    async def close(self) -> None:
        """Cancel what runs."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, task: MemoryTask) -> None:
        session_id = task.submission.session_id
        event: ResultEvent | ErrorEvent
        try:
            event = await self._outcome(task)
        except asyncio.CancelledError:
            event = self._result(task, TaskStatus.CANCELLED, None, EndedBy.CANCELLED, 130)
        except Exception as error:
            event = ErrorEvent(error=error)
        task.add(event)
        self._sessions.task_changed(session_id, task.task_id, -1)

    async def _outcome(self, task: MemoryTask) -> ResultEvent:
        tool = self._tools[task.submission.tool]
        workspace = self._sessions.workspace(task.submission.session_id)
        limits = self._sessions.get(task.submission.session_id).limits
        context = MemoryContext(task, workspace, limits, self._runner)
        result = await tool.run(context, validated(tool.spec, task.submission.arguments))
        outcome = result.outcome
        if outcome is None:
            return self._result(task, TaskStatus.SUCCESS, result.value, EndedBy.EXIT, 0)
        return self._result(task, outcome.status, result.value, outcome.ended_by, outcome.exit_code)

    def _result(
        self,
        task: MemoryTask,
        status: TaskStatus,
        value: ToolModel | None,
        ended_by: EndedBy,
        exit_code: int,
    ) -> ResultEvent:
        began, now = int(task.began * 1000), int(time.time() * 1000)
        return ResultEvent(
            status=status,
            tool=task.submission.tool,
            value=value,
            metadata=TaskMetadata(
                start_time_ms=began,
                end_time_ms=now,
                duration_ms=now - began,
                exit_code=exit_code,
                ended_by=ended_by,
                stdout_bytes=len(task.printed[Stream.STDOUT]),
                stderr_bytes=len(task.printed[Stream.STDERR]),
            ),
        )

    def _check_sequence(self, session_id: str, sequence: int) -> None:
        for task in self._tasks.values() if sequence else ():
            asked = task.submission
            if asked.session_id == session_id and asked.sequence == sequence:
                raise AlreadyExists(f"sequence {sequence} is that of task {task.task_id!r}")
        if sequence and sequence < self._last.get(session_id, 0):
            raise OutcomeUnknown(f"sequence {sequence} is past, and no record of it is left")

    def _get(self, task_id: str, session_id: str) -> MemoryTask:
        task = self._tasks.get((session_id, task_id))
        if task is None:
            raise NotFound(f"there is no task {task_id[:80]!r} in session {session_id[:80]!r}")
        return task


def validated(spec: ToolSpec, arguments: ToolModel | Mapping[str, Any] | str) -> ToolModel:
    """Make the tool's own arguments.

    Raises:
        InvalidRequest: They do not fit.
    """
    try:
        if isinstance(arguments, str):
            return spec.arguments.model_validate_json(arguments or "{}")
        return spec.arguments.model_validate(arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{spec.name}: {where}: {first['msg']}") from error


class MemoryEngine:
    """Sessions, tasks and checkpoints; an async context manager that owns what runs."""

    def __init__(
        self,
        tools: Sequence[Tool[Any, Any]],
        *,
        max_sessions: int = 8,
        runner: Runner = no_code,
    ) -> None:
        self.sessions = MemorySessions(max_sessions)
        self.checkpoints = MemoryCheckpoints(self.sessions)
        self.tasks = MemoryTasks(self.sessions, tools, runner)

    async def __aenter__(self) -> MemoryEngine:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.tasks.close()
