"""What the end of a refill's program means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from codegen_mcp.core.errors import Corrupt, LimitExceeded, SandboxUnavailable, WorkerError
from codegen_mcp.core.task import EndedBy, Outcome, Stream
from codegen_mcp.engine.checkpoints import refill_guest

_COUNTS = ("f", "d", "l", "h", "p", "bytes")
_LIMITS = {
    EndedBy.DISK,
    EndedBy.MEMORY,
    EndedBy.PIDS,
    EndedBy.CPU,
    EndedBy.TIMEOUT,
    EndedBy.OUTPUT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RefillReport:
    """What the program says that it made."""

    files: int
    directories: int
    """The two roots among them."""
    symlinks: int
    hardlinks: int
    fifos: int
    total_bytes: int
    """Of all files, holes included."""
    duration_s: float

    @property
    def names(self) -> int:
        """All of them."""
        return self.files + self.directories + self.symlinks + self.hardlinks + self.fifos


def judge(outcome: Outcome, said: Mapping[Stream, bytes], duration_s: float) -> RefillReport:
    """Read the report of a run that went well.

    Raises:
        Corrupt, LimitExceeded, SandboxUnavailable: It did not; as ``refill``.
    """
    if outcome.ended_by is not EndedBy.EXIT or outcome.exit_code != 0:
        raise _error(outcome, said[Stream.STDERR])
    files, directories, symlinks, hardlinks, fifos, total_bytes = _counts(said[Stream.STDOUT])
    return RefillReport(
        files=files,
        directories=directories,
        symlinks=symlinks,
        hardlinks=hardlinks,
        fifos=fifos,
        total_bytes=total_bytes,
        duration_s=duration_s,
    )


def _counts(stdout: bytes) -> list[int]:
    try:
        told = json.loads(stdout)
        counts = [told[name] for name in _COUNTS]
        if all(type(count) is int and count >= 0 for count in counts):
            return counts
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise SandboxUnavailable(
        f"the refill answered {stdout[:200]!r}, which is not its report; try again"
    )


def _error(outcome: Outcome, stderr: bytes) -> WorkerError:
    """Say whose fault a failed run was."""
    try:
        told = json.loads(stderr)
        words = f"{told['error']!s:.300}: {told['where']!r:.300}"
    except (ValueError, TypeError, KeyError, RecursionError):
        words = repr(stderr[-300:].decode("utf-8", "replace"))
    if not outcome.signal and not outcome.sandbox_lost:
        if outcome.exit_code == refill_guest.CORRUPT:
            return Corrupt(f"the checkpoint is damaged ({words}); restore another one")
        if outcome.exit_code == refill_guest.NO_SPACE:
            return _over(EndedBy.DISK, words)
    if outcome.ended_by in _LIMITS:
        return _over(outcome.ended_by, outcome.remedy or words)
    ended = outcome.ended_by.name.lower()
    return SandboxUnavailable(
        f"the refill ended by {ended} with exit code {outcome.exit_code} ({words}); try again"
    )


def _over(limit: EndedBy, words: str) -> LimitExceeded:
    name = limit.name.lower()
    return LimitExceeded(
        f"the checkpoint does not fit into the {name} limit of the session ({words}); "
        "restore it with larger limits",
        metadata={"ended_by": name},
    )
