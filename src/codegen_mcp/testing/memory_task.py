"""One task in memory: what its tool may use, and the events that its readers follow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace

from codegen_mcp.core.errors import InvalidRequest, NotFound, SandboxUnavailable
from codegen_mcp.core.limits import ResourceLimits, RunLimits
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, Outcome, Stream
from codegen_mcp.engine.base import (
    ErrorEvent,
    OnDisconnect,
    OutputEvent,
    ProgressEvent,
    ResultEvent,
    TaskEvent,
    TaskSubmission,
)
from codegen_mcp.languages.base import InstallRequest, InstallResult
from codegen_mcp.testing.memory_workspace import MemoryWorkspace
from codegen_mcp.tools.base import ArtifactContent, CapturedOutput

Runner = Callable[[Command, OutputSink], Awaitable[Outcome]]
"""Stands in for a sandbox."""


async def no_code(command: Command, sink: OutputSink) -> Outcome:
    """Run nothing."""
    raise SandboxUnavailable("this engine runs no code; give it a runner")


class MemoryTask:
    """A task's events, kept whole; any number of readers follow them from any offset."""

    def __init__(self, task_id: str, submission: TaskSubmission) -> None:
        self.task_id = task_id
        self.submission = submission
        self.began = time.time()
        self.events: list[TaskEvent] = []
        self.running: asyncio.Task[None] | None = None
        self.printed = dict.fromkeys(Stream, b"")
        self._changed = asyncio.Event()
        self._readers = 0

    @property
    def end(self) -> ResultEvent | ErrorEvent | None:
        """How it ended."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, ResultEvent | ErrorEvent) else None

    def add(self, event: TaskEvent) -> None:
        """Tell every reader."""
        self.events.append(event)
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, offsets: Mapping[Stream, int]) -> AsyncIterator[TaskEvent]:
        """Everything from the offsets on, to the end."""
        self._readers += 1
        index = 0
        try:
            while True:
                while index < len(self.events):
                    event = after(self.events[index], offsets)
                    index += 1
                    if event is not None:
                        yield event
                    if isinstance(event, ResultEvent | ErrorEvent):
                        return
                await self._changed.wait()
        finally:
            self._readers -= 1
            abandoned = self._readers == 0 and self.end is None and self.running is not None
            if abandoned and self.submission.on_disconnect is OnDisconnect.CANCEL:
                assert self.running is not None
                self.running.cancel()

    async def write(self, stream: Stream, data: bytes) -> None:
        """Take output (OutputSink)."""
        offset = len(self.printed[stream])
        self.printed[stream] += data
        now = time.time_ns() // 1_000_000
        self.add(OutputEvent(stream=stream, offset=offset, data=data, timestamp_ms=now))

    def omit(self, stream: Stream, count: int) -> None:
        """Nothing is left out here (OutputSink)."""


def after(event: TaskEvent, offsets: Mapping[Stream, int]) -> TaskEvent | None:
    """Cut what lies before a reader's offset off."""
    if not isinstance(event, OutputEvent):
        return event
    skip = max(0, offsets[event.stream] - event.offset)
    if skip >= len(event.data):
        return None
    return replace(event, offset=event.offset + skip, data=event.data[skip:])


class MemoryContext:
    """What a tool may use (ToolContext)."""

    def __init__(
        self, task: MemoryTask, workspace: MemoryWorkspace, limits: ResourceLimits, runner: Runner
    ) -> None:
        asked = task.submission.constraints
        self._task = task
        self._runner = runner
        self._bounds = limits
        self.session_id = task.submission.session_id
        self.task_id = task.task_id
        self.workspace = workspace
        self.env = task.submission.env
        self.limits = RunLimits(
            timeout_s=min(asked.timeout_s or limits.timeout_s, limits.max_timeout_s),
            output_bytes=min(asked.output_bytes or limits.output_bytes, limits.output_bytes),
            memory_bytes=asked.memory_bytes,
        )

    async def run(self, command: Command) -> Outcome:
        """Ask the runner."""
        return await self._runner(command, self._task)

    def captured(self) -> CapturedOutput:
        """All of it."""
        out, err = self._task.printed[Stream.STDOUT], self._task.printed[Stream.STDERR]
        return CapturedOutput(
            stdout=out,
            stderr=err,
            stdout_bytes=len(out),
            stderr_bytes=len(err),
            stdout_omitted=0,
            stderr_omitted=0,
        )

    async def progress(self, percent: int, stage: str, message: str) -> None:
        """Add an event."""
        self._task.add(ProgressEvent(percent=percent, stage=stage, message=message))

    async def install(self, request: InstallRequest) -> InstallResult:
        """Install nothing."""
        raise SandboxUnavailable("this engine installs no packages")

    async def artifact(self, artifact_id: str, max_bytes: int) -> ArtifactContent:
        """Find none."""
        raise NotFound(f"there is no artifact {artifact_id[:80]!r}; this engine keeps none")

    def limits_for(self, timeout_s: float | None) -> RunLimits:
        """Check as the law says."""
        if timeout_s is not None and not 0 <= timeout_s <= self._bounds.max_timeout_s:
            raise InvalidRequest(
                f"timeout {timeout_s!r} must be 0 to {self._bounds.max_timeout_s} seconds"
            )
        return replace(self.limits, timeout_s=timeout_s or self.limits.timeout_s)
