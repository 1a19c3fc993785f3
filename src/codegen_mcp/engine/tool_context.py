"""What one call of a tool may use: implements ``tools.base.ToolContext``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import NotImplementedYet, SandboxUnavailable, WorkerError
from codegen_mcp.core.limits import RunLimits, Usage
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, EndedBy, Outcome, Stream
from codegen_mcp.egress.task_egress import TaskEgress
from codegen_mcp.engine.artifacts.base import Artifacts
from codegen_mcp.engine.artifacts.content import read_content
from codegen_mcp.engine.constraints import checked_timeout
from codegen_mcp.engine.head_tail import HeadTail
from codegen_mcp.engine.no_output import NoOutput
from codegen_mcp.engine.output import OutputJournal
from codegen_mcp.engine.task import Task
from codegen_mcp.engine.task_config import TaskConfig
from codegen_mcp.engine.task_ports import TaskSession
from codegen_mcp.languages.base import Installer, InstallRequest, InstallResult
from codegen_mcp.sandbox.base import Sandbox
from codegen_mcp.sandbox.verdict import EXIT_CANCELLED
from codegen_mcp.tools.base import ArtifactContent, CapturedOutput, Workspace

_ATTEMPTS = 2
"""A sandbox that was lost between two runs is noticed when the next one begins: once more then."""


class TaskContext:
    """One per call. A cancel during ``run`` is an Outcome, so that the tool can still answer.

    The tool has ``absorb_s`` for that answer; whatever else it awaits afterwards is cancelled.
    """

    def __init__(
        self,
        task: Task,
        session: TaskSession,
        output: OutputJournal | NoOutput,
        *,
        limits: RunLimits,
        default_timeout: bool,
        env: Mapping[str, str],
        installer: Installer | None,
        artifacts: Artifacts | None,
        config: TaskConfig,
        clock: Clock,
        network: TaskEgress | None = None,
    ) -> None:
        self.network = network
        """The task's way out; None: it has none."""
        self._task = task
        self._session = session
        self._output = output
        self._limits = limits
        self._default_timeout = default_timeout
        self._env = env
        self._installer = installer
        self._artifacts = artifacts
        self._config = config
        self._clock = clock
        self._absorbed: asyncio.TimerHandle | None = None
        self.peak = Usage()
        """Of the last run."""

    @property
    def session_id(self) -> str:
        """The session of the call."""
        return self._session.session_id

    @property
    def task_id(self) -> str:
        """The task of the call."""
        return self._task.task_id

    @property
    def workspace(self) -> Workspace:
        """The session's files."""
        return self._session.workspace

    @property
    def env(self) -> Mapping[str, str]:
        """The task's variables."""
        return self._env

    @property
    def limits(self) -> RunLimits:
        """The task's bounds."""
        return self._limits

    def limits_for(self, timeout_s: float | None) -> RunLimits:
        """Tighten by a timeout of the tool's caller; the task's own, where given, still holds."""
        asked = checked_timeout(self._session.limits, timeout_s)
        if asked is None:
            return self._limits
        if not self._default_timeout:
            asked = min(asked, self._limits.timeout_s)
        return replace(self._limits, timeout_s=asked)

    def captured(self) -> CapturedOutput:
        """Output so far."""
        return self._output.captured()

    async def progress(self, percent: int, stage: str, message: str) -> None:
        """Tell how far the task is."""
        self._task.report(percent, stage, message)

    async def run(self, command: Command) -> Outcome:
        """Run code; a cancel of the task ends it and is its outcome."""
        sink = self._sink()
        command = replace(command, env={**self._env, **command.env})
        loop = asyncio.get_running_loop()
        # From its timeout on a run is being ended: then no reader may hold its last bytes back.
        timer = loop.call_later(command.limits.timeout_s, self._output.release)
        began = self._clock.monotonic()
        try:
            return await self._run(command, sink)
        except asyncio.CancelledError:
            cancellation = self._task.cancellation
            if cancellation is None or self._absorbed is not None:
                raise
            body = asyncio.current_task()
            assert body is not None
            body.uncancel()
            self._absorbed = loop.call_later(self._config.absorb_s, body.cancel)
            return Outcome(
                ended_by=EndedBy.CANCELLED,
                exit_code=EXIT_CANCELLED,
                remedy=cancellation.remedy,
                duration_s=self._clock.monotonic() - began,
                peak=self.peak,
            )
        finally:
            timer.cancel()

    async def install(self, request: InstallRequest) -> InstallResult:
        """Install packages; its runs are not part of the task's output."""
        if self._installer is None:
            raise NotImplementedYet(
                f"packages cannot be installed for {self._session.interpreter.language!r}"
            )
        self._sink()
        try:
            return await self._installer.install(
                request,
                interpreter=self._session.interpreter,
                venv=self._session.venv,
                run=self._capture,
                progress=self.progress,
                env={**self._session.env, **self._env},
                timeout_s=self._limits.timeout_s,
            )
        finally:  # however it ended, the environment may be another one now
            with suppress(WorkerError):
                await (await self._session.sandbox()).packages_changed()

    async def artifact(self, artifact_id: str, max_bytes: int) -> ArtifactContent:
        """Read an artifact whole."""
        if self._artifacts is None:
            raise NotImplementedYet("this worker keeps no artifacts")
        return await read_content(self._artifacts, artifact_id, max_bytes)

    def close(self) -> None:
        """The tool has answered."""
        if self._absorbed is not None:
            self._absorbed.cancel()

    async def _capture(self, command: Command) -> tuple[Outcome, bytes, bytes]:
        sink = _Capture(self._config)
        outcome = await self._run(command, sink)
        return outcome, sink.data(Stream.STDOUT), sink.data(Stream.STDERR)

    async def _run(self, command: Command, sink: OutputSink) -> Outcome:
        if self._absorbed is not None:
            raise asyncio.CancelledError
        for attempt in range(_ATTEMPTS):
            sandbox = await self._session.sandbox()
            try:
                outcome = await self._with_network(sandbox, command, sink)
            except SandboxUnavailable:
                if attempt + 1 == _ATTEMPTS:
                    raise
            else:
                self.peak = outcome.peak
                return outcome
        raise AssertionError("unreachable")

    async def _measured(self, sandbox: Sandbox, command: Command, sink: OutputSink) -> Outcome:
        try:
            return await sandbox.run(command, sink)
        except asyncio.CancelledError:
            # CPU time is counted since the boot there; what this run used is not known.
            self.peak = replace(sandbox.usage(), cpu_us=0)
            raise

    async def _with_network(self, sandbox: Sandbox, command: Command, sink: OutputSink) -> Outcome:
        """Run with the way out open, where the task has one: it ends with the run."""
        if self.network is None:
            return await self._measured(sandbox, command, sink)
        async with self.network.opened(sandbox.entrance) as variables:
            command = replace(command, env={**variables, **command.env})
            return await self._measured(sandbox, command, sink)

    def _sink(self) -> OutputJournal:
        if isinstance(self._output, NoOutput):
            raise WorkerError(f"tool {self._task.facts.tool!r} ran code without saying runs_code")
        return self._output


class _Capture:
    """The output of a run that nobody follows, head and tail."""

    def __init__(self, config: TaskConfig) -> None:
        size = config.output.capture_bytes
        self._kept = {stream: HeadTail(size, size * 8) for stream in Stream}

    async def write(self, stream: Stream, data: bytes) -> None:
        """Take."""
        self._kept[stream].add(data)

    def omit(self, stream: Stream, count: int) -> None:
        """Count."""
        self._kept[stream].omit(count)

    def data(self, stream: Stream) -> bytes:
        """Return head and tail."""
        return self._kept[stream].capture().data
