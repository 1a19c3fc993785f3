"""Which rlimits a run gets: the second line behind the control group, or the first without one.

Source: getrlimit(2). The guest sets them in the child, so that they count inside the session's
user namespace; set outside, RLIMIT_NPROC would be shared by all sessions of a host user.
"""

from __future__ import annotations

import math

from codegen_mcp.core.limits import ResourceLimits, RunLimits

NPROC_MARGIN = 64
"""Above pids.max, so that the control group refuses first: its refusals are counted."""
CPU_MARGIN_S = 1
"""Above the budget, so that the worker's own count of all processes ends the run first."""


def run_rlimits(
    limits: ResourceLimits,
    run_limits: RunLimits,
    *,
    memory_cgroup: bool,
    pids_cgroup: bool,
    counted_alone: bool = True,
) -> dict[str, int]:
    """Name (without ``RLIMIT_``) to value, soft and hard.

    Args:
        limits: The session's.
        run_limits: The run's.
        memory_cgroup: A group limits memory. Else RLIMIT_AS does, for each process alone.
        pids_cgroup: A group limits processes. Else RLIMIT_NPROC does.
        counted_alone: The kernel counts the session's processes apart (own host user or own user
            namespace). Where it does not, RLIMIT_NPROC would count the worker's own, and is left
            out.
    """
    chosen = {
        "NOFILE": limits.open_files,
        "FSIZE": limits.file_size_bytes,
        "CORE": 0,
    }
    if counted_alone:
        chosen["NPROC"] = limits.pids + (NPROC_MARGIN if pids_cgroup else 0)
    if not memory_cgroup:
        memory = run_limits.memory_bytes or limits.memory_bytes
        chosen["AS"] = min(memory, limits.memory_bytes)
    if run_limits.cpu_s > 0:
        chosen["CPU"] = math.ceil(run_limits.cpu_s) + CPU_MARGIN_S
    return chosen
