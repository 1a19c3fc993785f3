"""Why a run ended: one decision from the kernel's evidence.

Order, first that applies: worker_lost; cancelled, timeout, output, cpu (when the kill was ours);
memory (oom_kill rose and the run did not exit 0); pids, disk (exit not 0, and pids.events rose or
the volume was full); signal; exit. Exit 0 is always exit; limits met on the way go to limits_hit.
"""

from __future__ import annotations

from dataclasses import dataclass

from codegen_mcp.core.limits import ResourceLimits, RunLimits
from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.cgroup import CgroupCounters


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known when a run is over."""

    wait_status: int | None
    """As from waitpid(2); None when the sandbox died before it could be had."""
    our_kill: EndedBy | None
    """CANCELLED, TIMEOUT, OUTPUT, CPU when the worker ended the run for that."""
    before: CgroupCounters
    after: CgroupCounters
    disk_full: bool
    limits: ResourceLimits
    run_limits: RunLimits
    file_size_signal: bool = False
    """The main process ended by SIGXFSZ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision."""

    ended_by: EndedBy
    exit_code: int
    signal: int
    limits_hit: tuple[EndedBy, ...]
    remedy: str


def decide(evidence: Evidence) -> Verdict:
    """Decide; total, without I/O."""
    raise NotImplementedError
