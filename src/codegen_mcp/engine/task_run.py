"""Running one task: from its place in the line to the event that ends it."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import structlog

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import NotFound, StoreUnavailable, WorkerError
from codegen_mcp.core.network import denial_words
from codegen_mcp.core.task import EndedBy, Outcome
from codegen_mcp.engine.base import ErrorEvent, ResultEvent, TaskMetadata
from codegen_mcp.engine.hooks import EngineHooks
from codegen_mcp.engine.no_output import NoOutput
from codegen_mcp.engine.output import OutputJournal
from codegen_mcp.engine.task import Task, TaskEnd
from codegen_mcp.engine.task_book import TaskBook
from codegen_mcp.engine.task_ports import (
    Collected,
    CollectsFiles,
    RunTurn,
    SavesTurns,
    TaskSession,
)
from codegen_mcp.engine.tool_context import TaskContext
from codegen_mcp.sandbox.verdict import EXIT_CANCELLED, EXIT_TIME
from codegen_mcp.tools.base import Tool, ToolModel

log = structlog.get_logger()

SESSION_GONE = "the session was destroyed while this task waited or ran; create another one"
CUT_SHORT = (
    "the task was cancelled while files of artifacts/ were registered; the next run registers the "
    "others"
)
SHUTDOWN = (
    "the worker is shutting down and ended this task; submit it again under a new task_id once "
    "the worker is back, or on another one"
)


@dataclass(slots=True, kw_only=True)
class TaskRun:
    """Everything that one run of a task holds; ``perform`` gives all of it back."""

    task: Task
    output: OutputJournal | NoOutput
    tool: Tool[Any, Any]
    arguments: ToolModel | WorkerError
    context: TaskContext
    book: TaskBook
    counted: AbstractContextManager[None]
    """Entered: the session is busy until it is left."""
    turn: RunTurn | None
    """Taken: a place in the line; None for a tool that runs no code."""
    session: TaskSession
    collector: CollectsFiles | None
    saver: SavesTurns | None
    clock: Clock
    hooks: EngineHooks

    async def perform(self) -> None:
        """Run to the end. Never raises: what goes wrong is how the task ends."""
        task = self.task
        body = asyncio.current_task()
        assert body is not None
        began = self.clock.monotonic()
        task.entered(body)
        try:
            end = await self._end(began)
        finally:
            task.settle()
            self.context.close()
            if self.turn is not None:
                self.turn.abandon()
        end = self._record(end)
        if self.saver is not None and self.saver.wanted(self.session, self.tool.spec):
            end = await self._saved(end, self.saver)
        self._tell(end, self.clock.monotonic() - began)
        if self.book.untidy:
            await self.book.tidy()

    async def _end(self, began: float) -> TaskEnd:
        try:
            if self.task.cancellation is not None:
                return self._cancelled(began)
            if isinstance(self.arguments, WorkerError):
                raise self.arguments
            if self.turn is None:
                return await self._call_bounded(self.arguments, began)
            async with self.turn:
                return await self._call(self.arguments, self.clock.monotonic())
        except asyncio.CancelledError:
            body = asyncio.current_task()
            assert body is not None
            body.uncancel()
            # Cancelled by nobody we know: the loop itself is ending.
            self.task.request_cancel(SHUTDOWN)
            return self._cancelled(began)
        except WorkerError as error:
            if isinstance(error, NotFound) and error.reason == "SESSION_NOT_FOUND":
                self.task.request_cancel(SESSION_GONE)
            if self.task.cancellation is not None:
                return self._cancelled(began)
            return ErrorEvent(error=error)
        except Exception:
            return ErrorEvent(error=self._internal_error())

    async def _call_bounded(self, arguments: ToolModel, began: float) -> TaskEnd:
        """Call a tool that runs no code, within the task's time."""
        limit_s = self.context.limits.timeout_s
        body = asyncio.current_task()
        assert body is not None
        expired = False

        def expire() -> None:
            nonlocal expired
            if self.task.cancellation is None:
                expired = True
                body.cancel()

        timer = asyncio.get_running_loop().call_later(limit_s, expire)
        try:
            return await self._call(arguments, began)
        except asyncio.CancelledError:
            if not expired or self.task.cancellation is not None:
                raise
            body.uncancel()
            outcome = Outcome(
                ended_by=EndedBy.TIMEOUT,
                exit_code=EXIT_TIME,
                limits_hit=(EndedBy.TIMEOUT,),
                remedy=f"time limit {limit_s:g} s reached: ask for less, or for a longer timeout",
            )
            return self._result(None, outcome, began)
        finally:
            timer.cancel()

    async def _call(self, arguments: ToolModel, began: float) -> TaskEnd:
        self.task.start(self.clock.unix_ms())
        self.hooks.task_started(tool=self.tool.spec.name)
        result = await self.tool.run(self.context, arguments)
        outcome = result.outcome or _NO_CODE
        if (
            self.collector is None
            or self.turn is None
            or outcome.ended_by is EndedBy.CANCELLED  # its files are the next run's to register
            or not self.collector.wanted(self.session)
        ):
            return self._result(result.value, outcome, began)
        collected = await self._collect(self.collector)
        if collected.note:
            remedy = f"{outcome.remedy}; {collected.note}" if outcome.remedy else collected.note
            outcome = replace(outcome, remedy=remedy)
        end = self._result(result.value, outcome, began)
        return replace(end, artifacts=tuple(collected.artifacts))

    async def _collect(self, collector: CollectsFiles) -> Collected:
        """Register files; a cancel cuts that short and no more, for the code has ended."""
        collected = Collected()
        try:
            await collector.collect(self.session, self.task.task_id, collected)
        except asyncio.CancelledError:
            body = asyncio.current_task()
            assert body is not None
            body.uncancel()
            collected.note = CUT_SHORT
        return collected

    def _cancelled(self, began: float) -> ResultEvent:
        cancellation = self.task.cancellation
        outcome = Outcome(
            ended_by=EndedBy.CANCELLED,
            exit_code=EXIT_CANCELLED,
            remedy="" if cancellation is None else cancellation.remedy,
            peak=self.context.peak,
        )
        return self._result(None, outcome, began)

    def _result(self, value: ToolModel | None, outcome: Outcome, began: float) -> ResultEvent:
        task = self.task
        now_ms = self.clock.unix_ms()
        duration_s = outcome.duration_s or self.clock.monotonic() - began
        printed = self.output.captured()
        denied = self.context.network.denials() if self.context.network is not None else ()
        remedies = [part for part in (outcome.remedy, denial_words(denied)) if part]
        metadata = TaskMetadata(
            start_time_ms=task.started_at_ms or now_ms,
            end_time_ms=now_ms,
            duration_ms=round(duration_s * 1000),
            peak=outcome.peak,
            exit_code=outcome.exit_code,
            ended_by=outcome.ended_by,
            signal=outcome.signal,
            remedy="; ".join(remedies),
            limits_hit=outcome.limits_hit,
            stdout_bytes=printed.stdout_bytes,
            stderr_bytes=printed.stderr_bytes,
            stdout_omitted=printed.stdout_omitted,
            stderr_omitted=printed.stderr_omitted,
            network_denied=denied,
        )
        return ResultEvent(
            status=outcome.status, tool=task.facts.tool, value=value, metadata=metadata
        )

    def _record(self, end: TaskEnd) -> TaskEnd:
        """Write the end down before anybody is told; what cannot be written is an error."""
        task = self.task
        try:
            self.book.record(task, end)
        except WorkerError as error:
            end = ErrorEvent(error=error)
            self.book.record(task, end)
        except Exception:
            end = ErrorEvent(error=self._internal_error())
            self.book.record(task, end)
        return end

    async def _saved(self, end: TaskEnd, saver: SavesTurns) -> TaskEnd:
        """Hold the end back until what the task did is saved."""
        try:
            await saver.save(self.session)
        except asyncio.CancelledError:
            body = asyncio.current_task()
            assert body is not None
            body.uncancel()
            return ErrorEvent(error=not_saved("the worker is shutting down"))
        except WorkerError as error:
            return ErrorEvent(error=not_saved(error.message))
        except Exception:
            return ErrorEvent(error=self._internal_error())
        return end

    def _tell(self, end: TaskEnd, seconds: float) -> None:
        """Tell readers."""
        task = self.task
        self.counted.__exit__(None, None, None)
        task.finish(end, self.clock.unix_ms())
        self.book.finished(task)
        self.hooks.task_finished(
            tool=task.facts.tool, status=task.status, ended_by=task.ended_by, seconds=seconds
        )

    def _internal_error(self) -> WorkerError:
        error_id = secrets.token_hex(8)
        log.exception(
            "task.internal_error",
            error_id=error_id,
            task_id=self.task.task_id,
            session_id=self.task.facts.session_id,
            tool=self.task.facts.tool,
        )
        return WorkerError(
            f"internal error {error_id}; it is a fault of the worker, whose log has the details "
            "under this id",
            metadata={"error_id": error_id},
        )


def not_saved(why: str) -> StoreUnavailable:
    """Return the end of a task whose result may not be told yet."""
    return StoreUnavailable(
        f"the task has ended and its effects lie in the workspace, but are not saved: {why}. Its "
        "session wants results only once they are (durability SYNC): take a checkpoint, then look "
        "at the workspace",
        reason="NOT_SAVED",
    )


_NO_CODE = Outcome(ended_by=EndedBy.EXIT, exit_code=0)
