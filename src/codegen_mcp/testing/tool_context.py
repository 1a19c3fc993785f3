"""A ToolContext for the tests of a tool: real files in a real directory, programs without walls.

Programs run as ordinary child processes of the test, so run only what you trust.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from codegen_mcp.core.errors import (
    InvalidRequest,
    LimitExceeded,
    NotFound,
    NotImplementedYet,
)
from codegen_mcp.core.limits import ResourceLimits, RunLimits
from codegen_mcp.core.task import Argv, Command, EndedBy, Outcome, PythonFile
from codegen_mcp.engine.workspace import SessionWorkspace
from codegen_mcp.languages.base import InstallRequest, InstallResult
from codegen_mcp.tools.base import ArtifactContent, CapturedOutput, Workspace

Install = Callable[[InstallRequest], Awaitable[InstallResult]]


@asynccontextmanager
async def open_tool_context(
    root: Path,
    *,
    env: Mapping[str, str] | None = None,
    limits: ResourceLimits | None = None,
    install: Install | None = None,
) -> AsyncIterator[LocalToolContext]:
    """Give a tool the directory ``root`` as its workspace.

    Args:
        root: An existing directory, for example pytest's ``tmp_path``.
        env: Variables of the task.
        limits: Of the session; the defaults where None.
        install: Answers ``install``; without it that is refused.
    """
    workspace = SessionWorkspace(root, None)
    try:
        yield LocalToolContext(workspace, root, env or {}, limits or ResourceLimits(), install)
    finally:
        await workspace.aclose()


class LocalToolContext:
    """Made by ``open_tool_context``."""

    def __init__(
        self,
        workspace: Workspace,
        root: Path,
        env: Mapping[str, str],
        limits: ResourceLimits,
        install: Install | None,
    ) -> None:
        self._workspace = workspace
        self._root = root
        self._env = env
        self._limits = limits
        self._install = install
        self.artifacts: dict[str, ArtifactContent] = {}
        """What there is, by id; empty unless the test puts something in."""
        self._stdout = b""
        self._stderr = b""
        self.progress_told: list[tuple[int, str, str]] = []
        """Everything that ``progress`` was called with."""

    @property
    def session_id(self) -> str:
        """A fixed one."""
        return "ses_test"

    @property
    def task_id(self) -> str:
        """A fixed one."""
        return "task_test"

    @property
    def workspace(self) -> Workspace:
        """The files below the directory."""
        return self._workspace

    @property
    def env(self) -> Mapping[str, str]:
        """As given."""
        return self._env

    @property
    def limits(self) -> RunLimits:
        """As given."""
        return RunLimits(timeout_s=self._limits.timeout_s, output_bytes=self._limits.output_bytes)

    def limits_for(self, timeout_s: float | None) -> RunLimits:
        """As the worker does: 0 and None are the default, out of range is refused."""
        if not timeout_s:
            return self.limits
        if not math.isfinite(timeout_s) or not 0 < timeout_s <= self._limits.max_timeout_s:
            raise InvalidRequest(
                f"timeout {timeout_s!r} is not between 0 and {self._limits.max_timeout_s} seconds"
            )
        return replace(self.limits, timeout_s=timeout_s)

    async def run(self, command: Command) -> Outcome:
        """Run in the directory, without isolation; output is kept whole."""
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *_argv(command),
            stdin=asyncio.subprocess.PIPE if command.stdin_fd is None else command.stdin_fd,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._root / command.cwd,
            env={"PATH": os.defpath, "HOME": str(self._root), **self._env, **command.env},
            start_new_session=True,
        )
        ended_by = EndedBy.EXIT
        stdin = command.stdin if command.stdin_fd is None else None
        output = asyncio.ensure_future(process.communicate(stdin))
        try:
            done, _ = await asyncio.wait([output], timeout=command.limits.timeout_s)
            if not done:
                ended_by = EndedBy.TIMEOUT
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = await output
        self._stdout += stdout
        self._stderr += stderr
        return _outcome(ended_by, process.returncode or 0, time.monotonic() - started)

    def captured(self) -> CapturedOutput:
        """All that was printed."""
        return CapturedOutput(
            stdout=self._stdout,
            stderr=self._stderr,
            stdout_bytes=len(self._stdout),
            stderr_bytes=len(self._stderr),
            stdout_omitted=0,
            stderr_omitted=0,
        )

    async def progress(self, percent: int, stage: str, message: str) -> None:
        """Remember it."""
        self.progress_told.append((percent, stage, message))

    async def install(self, request: InstallRequest) -> InstallResult:
        """Ask what the test gave."""
        if self._install is None:
            raise NotImplementedYet("this context has no installer; pass install=")
        return await self._install(request)

    async def artifact(self, artifact_id: str, max_bytes: int) -> ArtifactContent:
        """Look into ``artifacts``."""
        if artifact_id not in self.artifacts:
            raise NotFound(f"there is no artifact {artifact_id!r}; the test put none in")
        found = self.artifacts[artifact_id]
        if len(found.data) > max_bytes:
            raise LimitExceeded(f"artifact {artifact_id!r} has more than {max_bytes} bytes")
        return found


def _argv(command: Command) -> tuple[str, ...]:
    program = command.program
    if isinstance(program, Argv):
        return program.argv
    if isinstance(program, PythonFile):
        return (sys.executable, program.path, *command.args)
    return (sys.executable, "-c", program.code.decode(), *command.args)


def _outcome(ended_by: EndedBy, status: int, duration_s: float) -> Outcome:
    if ended_by is EndedBy.TIMEOUT:
        return Outcome(ended_by=ended_by, exit_code=124, signal=9, duration_s=duration_s)
    if status < 0:
        return Outcome(
            ended_by=EndedBy.SIGNAL, exit_code=128 - status, signal=-status, duration_s=duration_s
        )
    return Outcome(ended_by=ended_by, exit_code=status, duration_s=duration_s)
