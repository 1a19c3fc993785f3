"""A sandbox backend without processes: the second implementation of ``sandbox.base``.

Runs are answered by a function. Nothing is isolated and nothing is executed: it is for tests of
what lies above the sandbox, and no product path can choose it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable, WrongState
from codegen_mcp.core.limits import ResourceLimits, Usage
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, EndedBy, Outcome
from codegen_mcp.sandbox.base import (
    WALLS,
    Enforcement,
    FreezeReport,
    IsolationLevel,
    Probe,
    SandboxSpec,
)

Answer = Callable[[Command, OutputSink], Awaitable[Outcome]]


async def succeed(command: Command, sink: OutputSink) -> Outcome:
    """Answer every run with exit code 0 and no output."""
    return Outcome(ended_by=EndedBy.EXIT, exit_code=0)


class MemorySandbox:
    """Answers runs until it is closed or ``lose`` is called."""

    def __init__(self, backend: MemoryBackend, spec: SandboxSpec) -> None:
        self._backend = backend
        self._lost = False
        self.closed = False
        self.spec = spec
        self.env: Mapping[str, str] = dict(spec.env)
        self.limits = spec.limits
        self.directory: Path | None = None
        """Where ``moved`` said that its slot lies."""
        self.used = Usage()
        """What ``usage`` answers."""
        self.frozen = False
        self.freezes = FreezeReport(frozen=True, how="cgroup")
        """What ``freeze`` answers."""

    @property
    def entrance(self) -> None:
        """No way out."""
        return None

    @property
    def alive(self) -> bool:
        """Whether it was neither lost nor closed."""
        return not (self._lost or self.closed)

    def lose(self) -> None:
        """End by itself, as when the guest is killed."""
        self._lost = True

    async def run(self, command: Command, sink: OutputSink) -> Outcome:
        """Ask the backend's function."""
        if not self.alive:
            raise SandboxUnavailable("the sandbox is gone; the next use gets a new one")
        return await self._backend.answer(command, sink)

    async def set_environment(self, env: Mapping[str, str]) -> None:
        """Keep them."""
        self._check_alive()
        self.env = dict(env)

    async def set_limits(self, limits: ResourceLimits) -> None:
        """Keep them."""
        self._check_alive()
        self.limits = limits

    def moved(self, directory: Path) -> None:
        """Keep it."""
        self.directory = directory

    async def packages_changed(self) -> None:
        """Nothing is warm."""

    def usage(self) -> Usage:
        """Return what the test set."""
        return self.used

    def processes(self) -> list[int]:
        """There are none."""
        return []

    async def freeze(self) -> FreezeReport:
        """Stand still, as far as the answer says so."""
        self._check_alive()
        if self.frozen:
            raise WrongState("the sandbox is frozen already; thaw it first")
        self.frozen = self.freezes.frozen
        return self.freezes

    async def thaw(self) -> None:
        """Undo it."""
        self.frozen = False

    async def aclose(self) -> None:
        """End it."""
        self.frozen = False
        if not self.closed:
            await asyncio.sleep(0)
            self.closed = True
            self._backend.open.discard(self)

    def _check_alive(self) -> None:
        if not self.alive:
            raise SandboxUnavailable("the sandbox is gone; the next use gets a new one")


class MemoryBackend:
    """Makes MemorySandbox; a test may slow boots down or let them fail."""

    def __init__(self, answer: Answer = succeed) -> None:
        self.answer = answer
        self.open: set[MemorySandbox] = set()
        """Booted and not closed."""
        self.boots = 0
        """Boots begun."""
        self.fail: list[Exception] = []
        """The next boots raise these, first to last."""
        self.refuse: Callable[[SandboxSpec], bool] = lambda spec: False
        """Boots of which this is true are refused."""
        self.gate: asyncio.Event | None = None
        """Boots wait for it."""

    @property
    def name(self) -> str:
        """``memory``."""
        return "memory"

    async def probe(self) -> Probe:
        """Promise nothing."""
        return Probe(
            name=self.name,
            available=True,
            level=IsolationLevel.PROCESS_BARE,
            reason="runs nothing",
            enforces=dict.fromkeys(WALLS, Enforcement.NONE),
        )

    async def create(self, spec: SandboxSpec) -> MemorySandbox:
        """Boot one."""
        self.boots += 1
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.fail:
            raise self.fail.pop(0)
        if self.refuse(spec):
            raise SandboxUnavailable("scripted")
        sandbox = MemorySandbox(self, spec)
        self.open.add(sandbox)
        return sandbox
