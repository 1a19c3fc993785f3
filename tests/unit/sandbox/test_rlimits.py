"""Which rlimits a run gets, with and without control groups."""

from __future__ import annotations

import resource

from codegen_mcp.core.limits import MIB, ResourceLimits, RunLimits
from codegen_mcp.sandbox.rlimits import run_rlimits

LIMITS = ResourceLimits(memory_bytes=256 * MIB, pids=100, open_files=512)
RUN = RunLimits(timeout_s=60, output_bytes=MIB)


def test_behind_a_control_group_they_are_the_second_line() -> None:
    found = run_rlimits(LIMITS, RUN, memory_cgroup=True, pids_cgroup=True)
    assert "AS" not in found
    assert found["NPROC"] > LIMITS.pids
    assert found["NOFILE"] == 512
    assert found["FSIZE"] == LIMITS.file_size_bytes
    assert found["CORE"] == 0


def test_without_one_they_are_the_first() -> None:
    found = run_rlimits(LIMITS, RUN, memory_cgroup=False, pids_cgroup=False)
    assert found["AS"] == 256 * MIB
    assert found["NPROC"] == 100


def test_a_tighter_memory_limit_of_the_run_counts_and_a_wider_one_does_not() -> None:
    for wanted, expected in ((64 * MIB, 64 * MIB), (512 * MIB, 256 * MIB)):
        run = RunLimits(timeout_s=60, output_bytes=MIB, memory_bytes=wanted)
        assert run_rlimits(LIMITS, run, memory_cgroup=False, pids_cgroup=True)["AS"] == expected


def test_processes_are_not_limited_where_the_worker_s_own_would_count() -> None:
    found = run_rlimits(LIMITS, RUN, memory_cgroup=False, pids_cgroup=False, counted_alone=False)
    assert "NPROC" not in found


def test_a_cpu_budget_is_rounded_up_and_stands_behind_the_worker_s_count() -> None:
    run = RunLimits(timeout_s=60, output_bytes=MIB, cpu_s=1.2)
    assert run_rlimits(LIMITS, run, memory_cgroup=True, pids_cgroup=True)["CPU"] == 3
    assert "CPU" not in run_rlimits(LIMITS, RUN, memory_cgroup=True, pids_cgroup=True)


def test_every_name_is_one_that_the_kernel_knows() -> None:
    run = RunLimits(timeout_s=60, output_bytes=MIB, cpu_s=1)
    for name in run_rlimits(LIMITS, run, memory_cgroup=False, pids_cgroup=False):
        assert isinstance(getattr(resource, f"RLIMIT_{name}"), int)
