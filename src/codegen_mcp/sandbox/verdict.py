"""Why a run ended: one decision from the kernel's evidence.

Order, first that applies: worker_lost; cancelled, timeout, output, cpu (when the kill was ours);
memory (oom_kill rose and the run did not exit 0); pids, disk (exit not 0, and pids.events rose or
the volume was full); signal; exit. Exit 0 is always exit; limits met on the way go to limits_hit.

A sandbox that died under the run is worker_lost only when nothing else accounts for it: a kill of
ours and an out-of-memory kill name themselves even where they took the guest along.
"""

from __future__ import annotations

from dataclasses import dataclass
from signal import SIGKILL, SIGXCPU

from codegen_mcp.core.limits import ResourceLimits, RunLimits
from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.cgroup import CgroupCounters
from codegen_mcp.sandbox.remedies import remedy_for

EXIT_TIME = 124
"""As coreutils timeout(1) answers; also for CPU time and output."""
EXIT_CANCELLED = 130
"""As a shell answers for ^C."""
EXIT_KILLED = 137
"""128 + SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known when a run is over."""

    wait_status: int | None
    """As from waitpid(2); None when the sandbox died before it could be had."""
    our_kill: EndedBy | None
    """CANCELLED, TIMEOUT, OUTPUT, CPU, DISK when the worker ended the run for that."""
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


OUR_KILLS = {
    EndedBy.CANCELLED: EXIT_CANCELLED,
    EndedBy.TIMEOUT: EXIT_TIME,
    EndedBy.OUTPUT: EXIT_TIME,
    EndedBy.CPU: EXIT_TIME,
}
"""Reasons for which the worker kills, with the exit code that it then answers."""


def decide(evidence: Evidence) -> Verdict:
    """Decide; total, without I/O."""
    exit_status, signal = _parse(evidence.wait_status)
    met = _limits_met(evidence, signal)
    ended_by = _reason(evidence, exit_status, signal, met)
    if ended_by in OUR_KILLS:
        exit_code = OUR_KILLS[ended_by]
    elif ended_by in (EndedBy.MEMORY, EndedBy.WORKER_LOST) or (exit_status is None and not signal):
        exit_code = EXIT_KILLED
    else:
        exit_code = 128 + signal if exit_status is None else exit_status
    return Verdict(
        ended_by=ended_by,
        exit_code=exit_code,
        signal=signal,
        limits_hit=met,
        remedy=remedy_for(
            ended_by,
            exit_code=exit_code,
            signal=signal,
            limits_hit=met,
            before=evidence.before,
            after=evidence.after,
            limits=evidence.limits,
            run_limits=evidence.run_limits,
            file_size_signal=evidence.file_size_signal,
        ),
    )


def _parse(wait_status: int | None) -> tuple[int | None, int]:
    """Split a wait status into (exit status, signal); (None, 0) where there is none."""
    if wait_status is None:
        return None, 0
    low = wait_status & 0x7F
    if low == 0:
        return (wait_status >> 8) & 0xFF, 0
    if low == 0x7F:  # stopped, not ended: no evidence of an end
        return None, 0
    return None, low


def _limits_met(evidence: Evidence, signal: int) -> tuple[EndedBy, ...]:
    """Limits met during the run, in the order of EndedBy."""
    before, after, run = evidence.before, evidence.after, evidence.run_limits
    met = {evidence.our_kill} & (OUR_KILLS.keys() - {EndedBy.CANCELLED})
    if after.oom_kills > before.oom_kills or after.parent_oom_kills > before.parent_oom_kills:
        met.add(EndedBy.MEMORY)
    if after.pids_refused > before.pids_refused:
        met.add(EndedBy.PIDS)
    if evidence.disk_full or evidence.our_kill is EndedBy.DISK:
        met.add(EndedBy.DISK)
    used_us = after.cpu_us - before.cpu_us
    spent = used_us >= run.cpu_s * 1_000_000
    # RLIMIT_CPU stands behind the budget; without a counter its signal is the only evidence.
    if run.cpu_s > 0 and (spent or (signal == SIGXCPU and after.cpu_us == 0)):
        met.add(EndedBy.CPU)
    return tuple(sorted(reason for reason in met if reason is not None))


def _reason(
    evidence: Evidence, exit_status: int | None, signal: int, met: tuple[EndedBy, ...]
) -> EndedBy:
    if exit_status == 0:
        return EndedBy.EXIT
    lost = exit_status is None and signal == 0
    ours = evidence.our_kill
    accounted = ours in OUR_KILLS or ours is EndedBy.DISK or EndedBy.MEMORY in met
    if lost and not accounted:
        return EndedBy.WORKER_LOST
    if ours is not None and ours in OUR_KILLS:
        return ours
    # RLIMIT_CPU sends SIGXCPU at its soft and SIGKILL at its hard limit.
    by_cpu_limit = signal == SIGXCPU or (signal == SIGKILL and EndedBy.MEMORY not in met)
    if by_cpu_limit and EndedBy.CPU in met:
        return EndedBy.CPU
    if ours is EndedBy.DISK and EndedBy.MEMORY not in met:
        return ours
    for reason in (EndedBy.MEMORY, EndedBy.PIDS, EndedBy.DISK):
        if reason in met:
            return reason
    return EndedBy.SIGNAL if signal else EndedBy.EXIT
