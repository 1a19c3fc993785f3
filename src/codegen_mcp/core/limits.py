"""What a session and a run may use, and what they used."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from codegen_mcp.core.errors import InvalidRequest

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Bounds of one session; every value is enforced or named as not enforced by the probe."""

    memory_bytes: int = 512 * MIB
    """All processes of the session together, their page cache and tmpfs included."""
    cpu_millicores: int = 1000
    """CPU bandwidth: 1000 is one full core."""
    disk_bytes: int = 1 * GIB
    """Workspace and environment together."""
    pids: int = 256
    """Processes and threads at once."""
    open_files: int = 1024
    """RLIMIT_NOFILE of each process."""
    file_size_bytes: int = 1 * GIB
    """RLIMIT_FSIZE: the longest single file."""
    tmp_bytes: int = 256 * MIB
    """Size of /tmp and of /dev/shm, each; both count as memory."""
    timeout_s: float = 60.0
    """Wall time of a task that names none."""
    max_timeout_s: float = 3600.0
    """Longest wall time that a task may ask for."""
    output_bytes: int = 64 * MIB
    """stdout plus stderr of one run; more ends the run with EndedBy.OUTPUT."""
    cpu_s: float = 0.0
    """CPU-time budget of one run in seconds; 0 is none."""
    concurrent_tasks: int = 16
    """Tasks of the session that run or wait at once; code runs one at a time among them."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name != "cpu_s"):
                raise InvalidRequest(f"limit {field.name}={value!r} must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """Bounds of one run: the session's, tightened by the task's constraints."""

    timeout_s: float
    output_bytes: int
    cpu_s: float = 0.0
    """0 is none."""
    memory_bytes: int | None = None
    """Tighter than the session's, for this run only; None is the session's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the kernel says was used. Zero where no counter exists (the probe names it)."""

    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    cpu_millicores: int = 0
    """Mean over the last sampling interval."""
    cpu_us: int = 0
    """CPU time since the sandbox began."""
    disk_bytes: int = 0
    pids: int = 0
