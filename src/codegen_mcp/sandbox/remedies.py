"""One sentence for each way a run can end: what was met, with figures, and what to do next."""

from __future__ import annotations

from signal import SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGKILL, SIGSEGV, SIGSYS, Signals

from codegen_mcp.core.limits import GIB, KIB, MIB, ResourceLimits, RunLimits
from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.cgroup import CgroupCounters

_SIGNALS = {
    SIGSEGV: "native code touched memory it does not own (or recursed too deep): "
    "suspect a C extension, ctypes or a raised recursion limit",
    SIGBUS: "a mapped file shrank or its disk filled up while it was used",
    SIGFPE: "native code divided by zero",
    SIGILL: "native code was built for another processor",
    SIGABRT: "native code gave up (abort); its reason is usually on stderr",
    SIGSYS: "it made a system call that the sandbox refuses: use one that needs no privilege",
    SIGKILL: "neither a limit nor the worker sent it: the program or a child of it did",
}


def show_bytes(count: int) -> str:
    """Write a size for people: ``512 MiB``, ``1.5 GiB``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{count} B"


def show_seconds(seconds: float) -> str:
    """Write a duration for people: ``60 s``, ``2.5 s``."""
    return f"{seconds:.1f}".removesuffix(".0") + " s"


def remedy_for(
    ended_by: EndedBy,
    *,
    exit_code: int,
    signal: int,
    limits_hit: tuple[EndedBy, ...],
    before: CgroupCounters,
    after: CgroupCounters,
    limits: ResourceLimits,
    run_limits: RunLimits,
    file_size_signal: bool,
) -> str:
    """Say what to do next; empty when the run exited 0 and met no limit."""

    def of_limit(reason: EndedBy) -> str:
        match reason:
            case EndedBy.MEMORY:
                return _memory(before, after, limits, run_limits)
            case EndedBy.PIDS:
                refused = after.pids_refused - before.pids_refused
                return (
                    f"process limit of {limits.pids} reached ({refused} forks or threads refused): "
                    "start fewer workers or threads, or ask for a larger limit"
                )
            case EndedBy.DISK:
                return (
                    f"disk limit {show_bytes(limits.disk_bytes)} reached (no space or no inodes "
                    "left): delete files that are no longer needed, or ask for a larger limit"
                )
            case EndedBy.CPU:
                used = max(after.cpu_us - before.cpu_us, 0) / 1_000_000
                return (
                    f"CPU-time budget {show_seconds(run_limits.cpu_s)} spent "
                    f"({show_seconds(used)} used): do less work in one run, or ask for more"
                )
            case EndedBy.OUTPUT:
                return (
                    f"output limit {show_bytes(run_limits.output_bytes)} reached: print less, "
                    "or write to a file in the workspace and read the part you need"
                )
            case _:
                return (
                    f"time limit {show_seconds(run_limits.timeout_s)} reached: split the work, "
                    f"or ask for a longer timeout (up to {show_seconds(limits.max_timeout_s)})"
                )

    match ended_by:
        case EndedBy.EXIT if exit_code == 0:
            return f"exited 0, but {of_limit(limits_hit[0])}" if limits_hit else ""
        case EndedBy.EXIT:
            return f"the program ended by itself with exit code {exit_code}: see its stderr"
        case EndedBy.SIGNAL:
            return _signal(signal, file_size_signal, limits)
        case EndedBy.CANCELLED:
            return "cancelled by the caller: what it wrote until then is kept; run it again"
        case EndedBy.WORKER_LOST:
            return (
                "the sandbox was lost during the run, which may have had effects: "
                "check the workspace, then run it again (files are kept)"
            )
        case _:
            return of_limit(ended_by)


def _memory(
    before: CgroupCounters, after: CgroupCounters, limits: ResourceLimits, run_limits: RunLimits
) -> str:
    if after.parent_oom_kills > before.parent_oom_kills:
        return (
            "the worker as a whole ran out of memory "
            f"(this session peaked at {show_bytes(after.memory_peak_bytes)}, its own limit was "
            "not the cause): run it again later, or give the worker fewer or smaller sessions"
        )
    limit = min(run_limits.memory_bytes or limits.memory_bytes, limits.memory_bytes)
    return (
        f"memory limit {show_bytes(limit)} reached "
        f"(peak {show_bytes(after.memory_peak_bytes)}): "
        "process the data in chunks, or ask for a larger limit"
    )


def _signal(signal: int, file_size_signal: bool, limits: ResourceLimits) -> str:
    if file_size_signal:
        return (
            f"file size limit {show_bytes(limits.file_size_bytes)} reached (SIGXFSZ): "
            "write several smaller files, or ask for a larger limit"
        )
    try:
        known = Signals(signal)
    except ValueError:
        return f"ended by signal {signal}"
    cause = _SIGNALS.get(known, "the program or a child of it sent it")
    return f"ended by {known.name} ({signal}): {cause}"
