"""The decision in the cases that people will read."""

from __future__ import annotations

from signal import SIGKILL, SIGSEGV, SIGXCPU, SIGXFSZ

import pytest

from codegen_mcp.core.limits import GIB, MIB, ResourceLimits, RunLimits
from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.cgroup import CgroupCounters
from codegen_mcp.sandbox.verdict import Evidence, Verdict, decide

NOTHING = CgroupCounters()


def judge(
    wait_status: int | None,
    *,
    our_kill: EndedBy | None = None,
    after: CgroupCounters = NOTHING,
    disk_full: bool = False,
    run_limits: RunLimits | None = None,
    file_size_signal: bool = False,
) -> Verdict:
    return decide(
        Evidence(
            wait_status=wait_status,
            our_kill=our_kill,
            before=NOTHING,
            after=after,
            disk_full=disk_full,
            limits=ResourceLimits(),
            run_limits=run_limits or RunLimits(timeout_s=60, output_bytes=64 * MIB),
            file_size_signal=file_size_signal,
        )
    )


def test_a_clean_end_says_nothing() -> None:
    assert judge(0) == Verdict(
        ended_by=EndedBy.EXIT, exit_code=0, signal=0, limits_hit=(), remedy=""
    )


def test_exit_137_of_its_own_is_an_exit_and_not_memory() -> None:
    verdict = judge(137 << 8)
    assert (verdict.ended_by, verdict.exit_code) == (EndedBy.EXIT, 137)


def test_a_sigkill_without_an_oom_kill_is_a_signal() -> None:
    verdict = judge(int(SIGKILL))
    assert (verdict.ended_by, verdict.exit_code, verdict.signal) == (EndedBy.SIGNAL, 137, 9)
    assert "neither a limit nor the worker sent it" in verdict.remedy


def test_a_pool_child_killed_for_memory_ends_the_run_by_memory() -> None:
    after = CgroupCounters(oom_kills=1, memory_peak_bytes=511 * MIB)
    verdict = judge(1 << 8, after=after)
    assert (verdict.ended_by, verdict.exit_code) == (EndedBy.MEMORY, 137)
    assert verdict.limits_hit == (EndedBy.MEMORY,)
    assert verdict.remedy == (
        "memory limit 512 MiB reached (peak 511 MiB): "
        "process the data in chunks, or ask for a larger limit"
    )


def test_a_tighter_limit_of_the_run_is_the_one_that_is_named() -> None:
    run_limits = RunLimits(timeout_s=60, output_bytes=MIB, memory_bytes=64 * MIB)
    verdict = judge(int(SIGKILL), after=CgroupCounters(oom_kills=1), run_limits=run_limits)
    assert verdict.remedy.startswith("memory limit 64 MiB reached")


def test_a_kill_by_the_worker_wide_limit_does_not_blame_the_session() -> None:
    after = CgroupCounters(oom_kills=1, parent_oom_kills=1, memory_peak_bytes=40 * MIB)
    verdict = judge(int(SIGKILL), after=after)
    assert verdict.ended_by is EndedBy.MEMORY
    assert "worker as a whole" in verdict.remedy
    assert "40 MiB" in verdict.remedy


@pytest.mark.parametrize(
    ("ours", "code"),
    [
        (EndedBy.TIMEOUT, 124),
        (EndedBy.CPU, 124),
        (EndedBy.OUTPUT, 124),
        (EndedBy.CANCELLED, 130),
    ],
)
def test_our_kills_have_exit_codes_of_their_own(ours: EndedBy, code: int) -> None:
    for status in (int(SIGKILL), None):
        verdict = judge(status, our_kill=ours)
        assert (verdict.ended_by, verdict.exit_code) == (ours, code)


def test_a_sandbox_that_vanished_is_worker_lost() -> None:
    verdict = judge(None)
    assert (verdict.ended_by, verdict.exit_code) == (EndedBy.WORKER_LOST, 137)


def test_a_guest_that_the_oom_killer_took_along_is_memory() -> None:
    assert judge(None, after=CgroupCounters(oom_kills=1)).ended_by is EndedBy.MEMORY


def test_refused_forks_and_a_full_disk_need_a_failed_run() -> None:
    refused = CgroupCounters(pids_refused=3)
    assert judge(1 << 8, after=refused).ended_by is EndedBy.PIDS
    assert judge(1 << 8, disk_full=True).ended_by is EndedBy.DISK
    fine = judge(0, after=refused, disk_full=True)
    assert fine.ended_by is EndedBy.EXIT
    assert fine.limits_hit == (EndedBy.PIDS, EndedBy.DISK)
    assert fine.remedy.startswith("exited 0, but process limit of 256 reached (3 forks")


def test_a_crash_names_its_signal_with_or_without_a_core() -> None:
    for status in (int(SIGSEGV), int(SIGSEGV) | 0x80):
        verdict = judge(status)
        assert (verdict.ended_by, verdict.exit_code, verdict.signal) == (EndedBy.SIGNAL, 139, 11)
        assert "SIGSEGV (11)" in verdict.remedy


def test_the_second_line_of_the_cpu_budget_counts_as_cpu() -> None:
    run_limits = RunLimits(timeout_s=60, output_bytes=MIB, cpu_s=2)
    assert judge(int(SIGXCPU), run_limits=run_limits).ended_by is EndedBy.CPU
    spent = CgroupCounters(cpu_us=2_000_000)
    assert judge(int(SIGXCPU), run_limits=run_limits, after=spent).ended_by is EndedBy.CPU


def test_a_kill_at_the_hard_cpu_limit_is_cpu_only_when_the_time_was_used() -> None:
    run_limits = RunLimits(timeout_s=60, output_bytes=MIB, cpu_s=2)
    spent = CgroupCounters(cpu_us=3_000_000)
    assert judge(int(SIGKILL), run_limits=run_limits, after=spent).ended_by is EndedBy.CPU
    assert judge(int(SIGKILL), run_limits=run_limits).ended_by is EndedBy.SIGNAL
    starved = CgroupCounters(cpu_us=3_000_000, oom_kills=1)
    assert judge(int(SIGKILL), run_limits=run_limits, after=starved).ended_by is EndedBy.MEMORY


def test_a_signal_sent_to_itself_does_not_pass_for_the_cpu_budget() -> None:
    run_limits = RunLimits(timeout_s=60, output_bytes=MIB, cpu_s=2)
    idle = CgroupCounters(cpu_us=1000)
    assert judge(int(SIGXCPU), run_limits=run_limits, after=idle).ended_by is EndedBy.SIGNAL
    assert judge(int(SIGXCPU)).ended_by is EndedBy.SIGNAL


def test_a_file_that_grew_too_long_says_so() -> None:
    verdict = judge(int(SIGXFSZ), file_size_signal=True)
    assert verdict.ended_by is EndedBy.SIGNAL
    assert verdict.remedy.startswith("file size limit 1 GiB reached")


def test_figures_are_written_for_people() -> None:
    run_limits = RunLimits(timeout_s=2.5, output_bytes=3 * GIB // 2)
    timed = judge(int(SIGKILL), our_kill=EndedBy.TIMEOUT, run_limits=run_limits)
    assert timed.remedy.startswith("time limit 2.5 s reached")
    flooded = judge(int(SIGKILL), our_kill=EndedBy.OUTPUT, run_limits=run_limits)
    assert flooded.remedy.startswith("output limit 1.5 GiB reached")


def test_a_sandbox_that_died_of_our_stop_for_the_disk_is_not_a_lost_worker() -> None:
    verdict = judge(None, our_kill=EndedBy.DISK, disk_full=True)
    assert (verdict.ended_by, verdict.exit_code) == (EndedBy.DISK, 137)
    assert EndedBy.DISK in verdict.limits_hit
