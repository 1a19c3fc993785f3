"""A sandbox whose runs do what a test tells them, while they run.

Nothing is isolated and nothing is executed: a run prints and ends when its ``Play`` is told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from codegen_mcp.core.errors import SandboxUnavailable, WrongState
from codegen_mcp.core.limits import ResourceLimits, Usage
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, EndedBy, Outcome, Stream
from codegen_mcp.sandbox.base import FreezeReport

SUCCESS = Outcome(ended_by=EndedBy.EXIT, exit_code=0)

Script = Callable[[Command, OutputSink], Awaitable[Outcome]]
"""What every run does when no test drives it."""


@dataclass(slots=True)
class Play:
    """One run under way."""

    command: Command
    sink: OutputSink
    ended: asyncio.Future[Outcome] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    killed: bool = False
    """Whether it was cancelled."""

    async def print(self, stream: Stream, data: bytes) -> None:
        """Print; waits where the sink does."""
        await self.sink.write(stream, data)

    def finish(self, outcome: Outcome = SUCCESS) -> None:
        """End the run."""
        self.ended.set_result(outcome)


class ScriptedSandbox:
    """Implements ``sandbox.base.Sandbox``."""

    def __init__(self, script: Script | None = None) -> None:
        self._script = script
        self._closed = False
        self._busy = False
        self._began = asyncio.Event()
        self.plays: list[Play] = []
        """Every run so far."""
        self.lose_next = 0
        """So many next runs find the sandbox lost before they begin."""
        self.packages_changes = 0
        """How often it was told to drop warm imports."""
        self.frozen = False
        self.freezes = FreezeReport(frozen=True, how="cgroup")
        """What ``freeze`` answers."""

    @property
    def entrance(self) -> None:
        """No way out."""
        return None

    @property
    def alive(self) -> bool:
        """Until it is closed."""
        return not self._closed

    async def play(self, number: int) -> Play:
        """Return the run of that number once it has begun."""
        while len(self.plays) <= number:
            self._began.clear()
            await self._began.wait()
        return self.plays[number]

    async def run(self, command: Command, sink: OutputSink) -> Outcome:
        """Run until the script or the test ends it."""
        if self._closed:
            raise SandboxUnavailable("the scripted sandbox is closed")
        if self.lose_next:
            self.lose_next -= 1
            raise SandboxUnavailable("the scripted sandbox was lost")
        assert not self._busy, "two runs at once"
        self._busy = True
        play = Play(command, sink)
        self.plays.append(play)
        self._began.set()
        try:
            if self._script is not None:
                return await self._script(command, sink)
            return await asyncio.shield(play.ended)
        except asyncio.CancelledError:
            play.killed = True
            raise
        finally:
            self._busy = False

    async def set_environment(self, env: Mapping[str, str]) -> None:
        """Ignore it."""

    async def set_limits(self, limits: ResourceLimits) -> None:
        """Ignore them."""

    def moved(self, directory: object) -> None:
        """Ignore it."""

    async def packages_changed(self) -> None:
        """Count it."""
        self.packages_changes += 1

    def usage(self) -> Usage:
        """Name constants that a test can look for."""
        return Usage(memory_bytes=1000, memory_peak_bytes=2000, cpu_us=3000, pids=1)

    def processes(self) -> list[int]:
        """There are none."""
        return []

    async def freeze(self) -> FreezeReport:
        """Note it; no run goes on by itself anyway."""
        if self._closed:
            raise SandboxUnavailable("the scripted sandbox is closed")
        if self.frozen:
            raise WrongState("the scripted sandbox is frozen already")
        self.frozen = self.freezes.frozen
        return self.freezes

    async def thaw(self) -> None:
        """Note it."""
        self.frozen = False

    async def aclose(self) -> None:
        """End a run under way as a lost sandbox ends it."""
        self._closed = True
        for play in self.plays:
            if not play.ended.done():
                play.finish(Outcome(ended_by=EndedBy.WORKER_LOST, exit_code=137, sandbox_lost=True))
