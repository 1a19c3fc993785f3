"""Puts a checkpoint's bytes back into a fresh slot: a program of ours in its sandbox writes them.

The worker inflates and counts; it never writes below a session's directories itself, so that no
name, link or archive can make it write elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from codegen_mcp.core.checkpoint import Entry
from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.core.limits import KIB, RunLimits
from codegen_mcp.core.task import Argv, Command, Outcome, Stream
from codegen_mcp.engine.checkpoints.refill_feed import ArchiveSource, close_pieces, feed
from codegen_mcp.engine.checkpoints.refill_outcome import RefillReport, judge
from codegen_mcp.engine.checkpoints.refill_program import refill_program
from codegen_mcp.engine.uninterrupted import settled
from codegen_mcp.sandbox.base import VENV, WORKSPACE, Sandbox
from codegen_mcp.sandbox.volumes.threads import to_end

__all__ = ["ArchiveSource", "RefillReport", "refill"]

_KEPT_BYTES = 16 * KIB


class HasEntries(Protocol):
    """A manifest, as far as it matters here."""

    @property
    def entries(self) -> Sequence[Entry]:
        """Every name."""


@dataclass(slots=True)
class _Said:
    """The program's words; the little that it says is kept, the rest dropped."""

    data: dict[Stream, bytes] = field(default_factory=lambda: dict.fromkeys(Stream, b""))

    async def write(self, stream: Stream, data: bytes) -> None:
        self.data[stream] = (self.data[stream] + data)[:_KEPT_BYTES]

    def omit(self, stream: Stream, count: int) -> None:
        pass


async def refill(
    sandbox: Sandbox,
    *,
    manifest: HasEntries,
    manifest_lines: bytes,
    archives: Sequence[ArchiveSource],
    limits: RunLimits,
    python: Path,
    root: Path,
) -> RefillReport:
    """Empty a sandbox's two directories and fill them; nothing else may run in it meanwhile.

    When this raises, or is cancelled, nothing of it runs any more and the directories hold
    anything: drop the slot. When it returns, compare the tree (``tree_compare``) before it counts.

    Args:
        sandbox: Of a fresh slot.
        manifest: Checked; of the checkpoint that is restored.
        manifest_lines: The same, as inflated lines.
        archives: Those of the chain that the manifest names, oldest first, its own last. Their
            pieces are closed at the end, whatever it is.
        limits: Of the run.
        python: An interpreter inside the sandbox (``Interpreter.executable``).
        root: Of the slot's volume (``Volume.root``), as the host sees it.

    Raises:
        Corrupt: The archives are not what the manifest says.
        LimitExceeded: It does not fit into the session's limits (``metadata["ended_by"]``).
        SandboxUnavailable: The sandbox ended, or something in it failed.
        Whatever reading the pieces raises.
    """
    began = time.monotonic()
    try:
        places = await to_end(lambda: _places(root))
        command_line = (str(python), "-I", "-S", "-c", refill_program(), *places)
        with _Pipe() as pipe:
            command = Command(
                program=Argv(command_line),
                limits=limits,
                env={"LD_PRELOAD": "", "LD_LIBRARY_PATH": ""},
                stdin_fd=pipe.read_end,
            )
            said = _Said()
            outcome = await _run(sandbox, command, said, pipe, manifest_lines, archives)
    finally:
        await close_pieces(archives)
    report = judge(outcome, said.data, time.monotonic() - began)
    if report.names != len(manifest.entries):
        raise SandboxUnavailable(
            f"the refill made {report.names} names of {len(manifest.entries)}; try again"
        )
    return report


class _Pipe:
    """A pipe of which the write end can be closed before the rest."""

    def __enter__(self) -> Self:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.write_end, False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_write()
        os.close(self.read_end)

    def close_write(self) -> None:
        """End the stream; idempotent."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1


async def _run(
    sandbox: Sandbox,
    command: Command,
    said: _Said,
    pipe: _Pipe,
    manifest_lines: bytes,
    archives: Sequence[ArchiveSource],
) -> Outcome:
    """Run the program while its input is written; both have ended when this returns or raises."""
    running = asyncio.ensure_future(sandbox.run(command, said))
    feeding = asyncio.ensure_future(feed(pipe.write_end, manifest_lines, archives))
    cancelled = None
    try:
        await asyncio.wait((running, feeding), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            feeding.result()
            pipe.close_write()
            await asyncio.wait((running,))
    finally:
        feeding.cancel()
        running.cancel()
        cancelled = await settled(asyncio.gather(feeding, running, return_exceptions=True))
    if cancelled is not None:
        raise cancelled
    if feeding.done() and not feeding.cancelled() and (failed := feeding.exception()) is not None:
        raise failed
    return running.result()


def _places(root: Path) -> list[str]:
    """Arguments of the program: which directories it must find, and where they may be."""
    workspace, venv = root / "workspace", root / "venv"
    found = [os.stat(path, follow_symlinks=False) for path in (workspace, venv)]
    identities = [f"{one.st_dev}:{one.st_ino}" for one in found]
    return [*identities, WORKSPACE, VENV, str(workspace), str(venv)]
