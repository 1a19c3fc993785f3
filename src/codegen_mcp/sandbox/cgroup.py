"""Control groups: the interface, and which version this host has.

``cgroup_v2*.py`` and ``cgroup_v1*.py`` implement it; ``cgroup_detect`` finds which can be used.
Sources: cgroups(7); kernel Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from codegen_mcp.core.limits import ResourceLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupCounters:
    """One reading. Counters only rise; compare two readings around a run."""

    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    oom_kills: int = 0
    """Kills inside this group because of its own limit or one above it."""
    parent_oom_kills: int = 0
    """Kills that the worker-wide parent limit caused."""
    pids: int = 0
    pids_refused: int = 0
    """Forks that pids.max refused."""
    cpu_us: int = 0
    cpu_throttled: int = 0


class RunGroups(Protocol):
    """A group for each run below the session's. All but ``prepare`` may be called in the loop."""

    def prepare(self, number: int, pid: int) -> bool:
        """Move the spare of that number into a group of its own; blocks for some 10 ms.

        ``pid`` is what it has inside. False when there is no such process in the session.
        """

    def begin(self, number: int) -> None:
        """That spare became a run; its group may come a moment later, or never."""

    def kill(self) -> bool:
        """SIGKILL all of the run and nothing else; False where it has no group."""

    def end(self) -> None:
        """The run is over."""


class Cgroup(Protocol):
    """The control group of one session."""

    @property
    def controllers(self) -> frozenset[str]:
        """Of memory, pids, cpu, freezer: those that hold in this group."""

    @property
    def attach_files(self) -> Sequence[Path]:
        """Every ``cgroup.procs`` that a starting process must write ``0`` to."""

    @property
    def runs(self) -> RunGroups | None:
        """Groups for each run; None where there is only the session's."""

    def set_limits(self, limits: ResourceLimits) -> None:
        """Write memory (swap off), pids and CPU bandwidth."""

    def set_memory(self, memory_bytes: int) -> bool:
        """Set only the memory limit (for one run); False when current use is above it."""

    def reset_peak(self) -> None:
        """Start a new peak reading where the kernel can; else leave it."""

    def read(self) -> CgroupCounters:
        """Read all counters now; about 0.1 ms."""

    def pids(self) -> list[int]:
        """Host pids inside."""

    def kill(self) -> None:
        """SIGKILL everything inside, also what forks meanwhile; returns within 100 ms."""

    def freeze(self, within_s: float = 0.1) -> bool:
        """Stop everything; blocks until it stands still.

        False where there is no freezer or it does not get there in time; then all is thawed.
        """

    def thaw(self) -> None:
        """Undo ``freeze``."""

    def rename(self, name: str) -> None:
        """Note another owner (no-op where the kernel cannot rename)."""

    def remove(self) -> bool:
        """Remove the empty group; False while something is still inside (try again later)."""


class CgroupDriver(Protocol):
    """Makes session groups below one parent that caps them all together."""

    @property
    def version(self) -> int:
        """1 or 2."""

    @property
    def controllers(self) -> frozenset[str]:
        """Of memory, pids, cpu, freezer: those that can be used here."""

    def create(self, name: str) -> Cgroup:
        """Make one without limits. OSError when the kernel refuses."""

    def remove_stale(self) -> list[str]:
        """Kill and remove every session group of this parent (a dead worker's); return names."""

    def close(self) -> None:
        """Remove the parent when it is empty."""
