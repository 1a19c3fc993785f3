"""One backend with a bed for its sandboxes, and a run's output: what the laws are tried on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Self

from codegen_mcp.core.limits import MIB, ResourceLimits, RunLimits
from codegen_mcp.core.task import (
    Command,
    Outcome,
    Program,
    PythonCode,
    Stream,
)
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import HostIdentity, SandboxBackend
from codegen_mcp.sandbox.selftest.bed import LIMITS, Bed, Place

WITHIN_S = 5.0
"""Bound of every wait for a condition."""


@dataclass(slots=True)
class Ran:
    """A run's output as the sink got it."""

    outcome: Outcome | None = None
    parts: list[tuple[Stream, bytes]] = field(default_factory=list)
    omitted: dict[Stream, int] = field(default_factory=dict)
    printed: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False
    """Make the sink raise."""

    async def write(self, stream: Stream, data: bytes) -> None:
        """Keep everything."""
        if self.fails:
            raise ConnectionError("the reader is gone")
        assert 1 <= len(data) <= 65536
        self.parts.append((stream, data))
        self.printed.set()

    def omit(self, stream: Stream, count: int) -> None:
        """Sum up."""
        self.omitted[stream] = self.omitted.get(stream, 0) + count

    @property
    def stdout(self) -> bytes:
        """All of it."""
        return b"".join(data for stream, data in self.parts if stream is Stream.STDOUT)

    @property
    def stderr(self) -> bytes:
        """All of it."""
        return b"".join(data for stream, data in self.parts if stream is Stream.STDERR)

    @property
    def end(self) -> Outcome:
        """The outcome of a run that has ended."""
        assert self.outcome is not None
        return self.outcome


class Rig:
    """One backend with a bed for its sandboxes."""

    def __init__(
        self,
        backend: SandboxBackend,
        config: BackendConfig,
        identities: Sequence[HostIdentity],
        *,
        with_volumes: bool = False,
    ) -> None:
        self.backend = backend
        self.config = config
        self.one_to_one = backend.name != "gvisor"
        """Whether each process inside is one of the host's; gVisor's kernel has its own."""
        self.bed = Bed(backend, config, with_volumes=with_volumes)
        self._users: Iterator[HostIdentity | None] = cycle([*identities] or [None])

    async def __aenter__(self) -> Self:
        await self.bed.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.bed.__aexit__(kind, error, trace)

    async def place(self, limits: ResourceLimits = LIMITS) -> Place:
        """Boot a sandbox of its own user; the bed removes it."""
        return await self.bed.place(next(self._users), limits)

    async def run(
        self,
        place: Place,
        program: Program | str,
        *,
        ran: Ran | None = None,
        limits: RunLimits | None = None,
        args: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        stdin_fd: int | None = None,
        cwd: str = "",
    ) -> Ran:
        """Run to the end."""
        ran = ran or Ran()
        command = Command(
            program=PythonCode(program.encode()) if isinstance(program, str) else program,
            limits=limits or RunLimits(timeout_s=20, output_bytes=8 * MIB),
            args=args,
            env=env or {},
            stdin=stdin,
            stdin_fd=stdin_fd,
            cwd=cwd,
        )
        ran.outcome = await place.sandbox.run(command, ran)
        return ran


async def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
