"""Runs tools in sessions: admission, duplicates, cancels, and streams of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any

import structlog

from codegen_mcp.core.clock import Clock, SystemClock
from codegen_mcp.core.errors import Draining, Full, UnknownTool, WrongState
from codegen_mcp.core.ids import check_task_id, new_task_id
from codegen_mcp.core.task import EndedBy, Stream
from codegen_mcp.engine.arguments import read_arguments
from codegen_mcp.engine.artifacts.base import Artifacts
from codegen_mcp.engine.base import TaskEvent, TaskSubmission, TaskView
from codegen_mcp.engine.constraints import check_env, tightened
from codegen_mcp.engine.fingerprint import fingerprint
from codegen_mcp.engine.hooks import EngineHooks, NoHooks
from codegen_mcp.engine.no_output import NoOutput
from codegen_mcp.engine.output import OutputJournal
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.task import Task, TaskFacts
from codegen_mcp.engine.task_book import TaskBook
from codegen_mcp.engine.task_ledger import TaskLedger
from codegen_mcp.engine.task_network import task_network
from codegen_mcp.engine.task_ports import (
    CollectsFiles,
    FindsSessions,
    SavesTurns,
    TaskSession,
)
from codegen_mcp.engine.task_run import SESSION_GONE, SHUTDOWN, TaskRun
from codegen_mcp.engine.tool_context import TaskContext
from codegen_mcp.languages.base import Installer
from codegen_mcp.tools.base import Tool, ToolSpec

log = structlog.get_logger()

_SHOWN_REASON = 200
_CANCEL_WAIT_S = 5.0
"""How long a cancel waits for the task's end before it answers all the same."""


class TaskExecutor:
    """Implements ``base.Tasks``. An async context manager: leaving it ends every task."""

    def __init__(
        self,
        sessions: FindsSessions,
        tools: Mapping[str, Tool[Any, Any]],
        ledger: TaskLedger,
        *,
        installers: Mapping[str, Installer] | None = None,
        artifacts: Artifacts | None = None,
        collector: CollectsFiles | None = None,
        hooks: EngineHooks | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Wire it; nothing runs yet.

        Args:
            sessions: The session pool.
            tools: Every tool by its dotted name.
            ledger: Task records; the same one that the pool was given. Its config is used.
            installers: Language name to what installs its packages.
            artifacts: What tools may read; None where there are none.
            collector: Registers the files that code leaves; None leaves them where they lie.
            hooks: Who is told of starts and ends.
            clock: The time.
        """
        self._sessions = sessions
        self._tools = dict(tools)
        self._by_mcp_name = {tool.spec.mcp_name: tool for tool in tools.values()}
        self._ledger = ledger
        self._config = ledger.config
        self._installers = dict(installers or {})
        self._artifacts = artifacts
        self._collector = collector
        self.saver: SavesTurns | None = None
        """Set once there is one: it needs the sessions, which are there before."""
        self._hooks = hooks or NoHooks()
        self._clock = clock or SystemClock()
        self._owned = OwnedTasks()
        self._under_way: dict[Task, asyncio.Task[None]] = {}
        self._closing = False

    async def __aenter__(self) -> TaskExecutor:
        """Take tasks."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """``stop``, and close the files of the records."""
        await self.stop()
        self._ledger.close()

    async def stop(self) -> None:
        """Refuse new tasks, end those under way as CANCELLED, and wait for that.

        Readers are told before this returns, or soon after: stop serving them afterwards.
        """
        self._closing = True
        for task in list(self._under_way):
            task.request_cancel(SHUTDOWN)
        if self._under_way:
            await asyncio.wait(list(self._under_way.values()), timeout=self._config.stop_wait_s)
        for task, body in list(self._under_way.items()):
            log.warning("task.ignores_cancel", task_id=task.task_id, tool=task.facts.tool)
            body.cancel()
        await self._owned.join()

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """Every tool."""
        return [tool.spec for tool in self._tools.values()]

    @property
    def active(self) -> int:
        """Tasks that wait or run now."""
        return len(self._under_way)

    async def submit(self, submission: TaskSubmission) -> str:
        """Admit a task or join the one that was admitted under this id."""
        session = self._sessions.session(submission.session_id)
        book = self._book(session)
        task_id = check_task_id(submission.task_id) if submission.task_id else new_task_id()
        tool = self._tool(submission.tool)
        limits = tightened(session.limits, submission.constraints)
        check_env(submission.env)
        arguments = read_arguments(tool.spec, submission.arguments)
        digest = fingerprint(
            tool.spec.name,
            submission.arguments if isinstance(arguments, Exception) else arguments,
            submission.env,
            submission.constraints,
            submission.sequence,
            submission.secrets,
        )
        if book.same(task_id, digest):
            return task_id
        book.sequences.check_new(submission.sequence, task_id)
        self._check_room()
        network = task_network(session.egress, submission)

        facts = TaskFacts(
            task_id=task_id,
            session_id=session.session_id,
            tool=tool.spec.name,
            sequence=submission.sequence,
            fingerprint=digest,
            submitted_at_ms=self._clock.unix_ms(),
        )
        output: OutputJournal | NoOutput = NoOutput()
        if tool.spec.runs_code:
            output = OutputJournal(
                self._config.output, self._clock, book.spools.new, limits.output_bytes
            )
        task = Task(facts, output, submission.on_disconnect)
        task.kept = not tool.spec.read_only or bool(submission.sequence)
        context = TaskContext(
            task,
            session,
            output,
            limits=limits,
            default_timeout=not submission.constraints.timeout_s,
            env=submission.env,
            installer=self._installers.get(session.interpreter.language),
            artifacts=self._artifacts,
            config=self._config,
            clock=self._clock,
            network=network,
        )
        counted = session.activity(lambda reason: task.request_cancel(reason or SESSION_GONE))
        counted.__enter__()
        turn = None
        try:
            if tool.spec.runs_code and not isinstance(arguments, Exception):
                turn = session.run_slot()
            book.admit(task)
        except BaseException:
            if turn is not None:
                turn.abandon()
            counted.__exit__(None, None, None)
            raise
        session.note_task(task_id)
        run = TaskRun(
            task=task,
            output=output,
            tool=tool,
            arguments=arguments,
            context=context,
            book=book,
            counted=counted,
            turn=turn,
            session=session,
            collector=self._collector,
            saver=self.saver,
            clock=self._clock,
            hooks=self._hooks,
        )
        self._under_way[task] = self._owned.spawn(self._perform(run), "task")
        return task_id

    async def events(
        self,
        task_id: str,
        session_id: str,
        *,
        stdout_offset: int | None = None,
        stderr_offset: int | None = None,
    ) -> AsyncGenerator[TaskEvent, None]:
        """Follow a task from the offsets to its end."""
        book = self._book(self._sessions.session(session_id))
        task = book.get(task_id)
        model = self._tools[task.facts.tool].spec.result if task.facts.tool in self._tools else None
        output = task.output
        if output is None:
            _check_lost_output(task, stdout_offset, stderr_offset)
            yield await book.end_of(task, model)
            return
        reader: Any = output.attach(stdout_offset, stderr_offset)
        try:
            reported = 0
            while True:
                reports, reported = task.progress_since(reported)
                if reports:
                    for report in reports:
                        yield report
                elif (event := reader.take()) is not None:
                    yield event
                elif reader.behind:
                    try:
                        await reader.fetch()
                    except WrongState:
                        if not (task.finished and book.closed):
                            raise
                        break  # the session is gone with its files; the end tells what is missing
                elif task.finished:
                    break
                else:
                    await reader.wait()
            yield await book.end_of(task, model)
        finally:
            output.detach(reader)
            task.left()

    async def cancel(self, task_id: str, session_id: str, reason: str) -> tuple[bool, str]:
        """Cancel and wait for the end; the state is the one that the cancel met."""
        task = self._book(self._sessions.session(session_id)).get(task_id)
        state = task.state.value
        why = f" ({reason[:_SHOWN_REASON]})" if reason else ""
        did = task.request_cancel(
            f"cancelled by the caller{why}: what it wrote until then is kept; submit it again "
            "under a new task_id"
        )
        if task in self._under_way:
            await asyncio.wait([self._under_way[task]], timeout=_CANCEL_WAIT_S)
        return did, state

    def status(self, task_id: str, session_id: str) -> TaskView:
        """Return a task as it is now."""
        task = self._book(self._sessions.session(session_id)).get(task_id)
        return task.view(self._clock.unix_ms())

    def list(self, session_id: str) -> Sequence[TaskView]:
        """Return all that there is a record of, newest first."""
        now_ms = self._clock.unix_ms()
        tasks = list(self._book(self._sessions.session(session_id)))
        return [task.view(now_ms) for task in reversed(tasks)]

    def last_sequence(self, session_id: str) -> int:
        """Return the highest number that a task of the session had."""
        return self._book(self._sessions.session(session_id)).sequences.last

    async def _perform(self, run: TaskRun) -> None:
        try:
            await run.perform()
        finally:
            del self._under_way[run.task]

    def _book(self, session: TaskSession) -> TaskBook:
        return self._ledger.book(session.session_id, session.directory)

    def _tool(self, name: str) -> Tool[Any, Any]:
        tool = self._tools.get(name) or self._by_mcp_name.get(name)
        if tool is None:
            raise UnknownTool(
                f"there is no tool {name[:80]!r} on this worker; there are "
                + ", ".join(sorted(self._tools))
            )
        return tool

    def _check_room(self) -> None:
        if self._closing:
            raise Draining("the worker is shutting down and takes no new tasks; use another one")
        if len(self._under_way) >= self._config.max_tasks:
            raise Full(
                f"the worker has {len(self._under_way)} tasks under way, which is its limit; "
                "wait for one to end",
                reason="QUEUE_FULL",
                retry_after_s=1.0,
            )


def _check_lost_output(task: Task, stdout_offset: int | None, stderr_offset: int | None) -> None:
    """Refuse offsets into output that went with the worker that ran the task.

    A task that was lost with it has no more than its end to tell; a finished one was complete.
    """
    if task.ended_by is EndedBy.WORKER_LOST:
        return
    for stream, offset in ((Stream.STDOUT, stdout_offset), (Stream.STDERR, stderr_offset)):
        if offset is not None and offset < task.logged[stream]:
            raise WrongState(
                f"the output of task {task.task_id!r} went with a worker that ended; submit the "
                "same request again for its recorded result, which has head and tail",
                reason="OUTPUT_EXPIRED",
            )
