"""One session during one install: its environment, and runs of our programs in its sandbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from codegen_mcp.core.errors import WorkerError
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import MIB, RunLimits
from codegen_mcp.core.task import Argv, Command, EndedBy, Outcome
from codegen_mcp.languages.base import CaptureRun
from codegen_mcp.languages.python import installer_guest
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.sandbox.base import TOOLS, VENV, WHEELS

_log = structlog.get_logger()

GUEST = Path(installer_guest.__file__).read_text()
_CLEAR_S = 10.0
_DONE = b"\n" + installer_guest.DONE.encode() + b"\n"
_OUTPUT_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a program of ours ended in the session; what it printed is hostile."""

    outcome: Outcome
    stdout: bytes
    words: str

    @property
    def good(self) -> bool:
        """Whether it did its work."""
        return self.outcome.ended_by is EndedBy.EXIT and self.outcome.exit_code == 0


@dataclass(slots=True, kw_only=True)
class InstallSession:
    """The session to install into."""

    config: PackageConfig
    interpreter: Interpreter
    venv: Path
    run: CaptureRun
    deadline: float
    """time.monotonic() at which the whole install must be over."""
    asked: int = 0
    """Programs run so far."""

    @property
    def remaining_s(self) -> float:
        """Time left, at least a second."""
        return max(1.0, self.deadline - time.monotonic())

    async def ask(self, program: str, job: Mapping[str, Any], view: str) -> Answer:
        """Run a program; what a killed one did to the environment is undone at once.

        Args:
            program: Source text, standard library only.
            job: Sent to it as a literal; ``places`` is added.
            view: Path of the wheels to use, relative to the wheelhouse.
        """
        self.asked += 1
        ended, done = False, False
        try:
            run = self._command(program, {**job, "places": self._places(view)}, self.remaining_s)
            outcome, stdout, stderr = await self.run(run)
            ended = outcome.ended_by is EndedBy.EXIT
            done = stdout.endswith(_DONE)
        finally:
            if not ended:
                await self.clear(view, keep=done)
        if done and not ended:  # only its own cleaning was cut short
            outcome = replace(outcome, ended_by=EndedBy.EXIT, exit_code=0, signal=0, remedy="")
        words = stderr.decode("utf-8", "replace")
        return Answer(outcome=outcome, stdout=stdout, words=words)

    async def clear(self, view: str, *, keep: bool = False) -> None:
        """Undo an install that was cut short and free its space; the next one would do it too.

        Args:
            view: As for ``ask``.
            keep: It had said that it was done: only free the space.
        """
        job = {"do": "keep" if keep else "undo", "places": self._places(view)}
        try:
            async with asyncio.timeout(_CLEAR_S):
                await self.run(self._command(GUEST, job, _CLEAR_S))
        except (WorkerError, TimeoutError) as error:
            _log.info("packages.clear_failed", reason=str(error))

    def _places(self, view: str) -> list[dict[str, str]]:
        """Paths in a sandbox with mounts, and without (the process backend).

        There the environment is where VIRTUAL_ENV says: a path that outlives a move of the volume.
        """
        uv, wheels = str(self.config.uv), str(self.config.wheelhouse / view)
        return [
            {"venv": VENV, "uv": f"{TOOLS}/uv", "wheels": f"{WHEELS}/{view}"},
            {"venv": "", "uv": uv, "wheels": wheels},
            {"venv": str(self.venv), "uv": uv, "wheels": wheels},
        ]

    def _command(self, program: str, job: Mapping[str, Any], timeout_s: float) -> Command:
        """Return the run; variables that change how programs start are emptied for it."""
        python = str(self.interpreter.executable)
        return Command(
            program=Argv((python, "-I", "-S", "-c", program)),
            limits=RunLimits(timeout_s=timeout_s, output_bytes=_OUTPUT_BYTES),
            env={"LD_PRELOAD": "", "LD_LIBRARY_PATH": ""},
            stdin=ascii(job).encode(),
        )
