"""Control groups, version 2: for each session one group, with one below it for each run.

Source: kernel Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from codegen_mcp.core.errors import LimitExceeded
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.sandbox.cgroup import CgroupCounters
from codegen_mcp.sandbox.cgroup_files import (
    CgroupFs,
    Counters,
    kill_pids,
    numbers,
    pairs,
    remove_group,
)
from codegen_mcp.sandbox.cgroup_v2_runs import SEAT, V2Runs

CONTROLLERS = ("memory", "pids", "cpu")
PERIOD_US = 100_000
KILL_WITHIN_S = 0.1


class V2Cgroup:
    """A session's group. Files that a controller would bring are optional, one by one.

    Limits are the session's and hold for all below it. ``memory.oom.group`` stays 0 here: a run's
    group has it, so that the kernel ends that run and the guest (so the session) survives.
    """

    def __init__(self, path: Path, fs: CgroupFs) -> None:
        self._path = path
        self._fs = fs
        self._counters = Counters(fs)
        self._controllers = frozenset(fs.read(path / "cgroup.controllers").split())
        self._seat = path / SEAT if fs.exists(path / SEAT) else path
        self._runs = V2Runs(path, fs) if self._seat != path else None
        self._began_bytes = 0
        """In use when the run began."""
        self._own_ooms = 0
        self._oom_kills = 0
        self._parent_oom_kills = 0
        self._peak: int | None = None
        self._present: set[str] = set()
        """Files that were seen."""

    @property
    def controllers(self) -> frozenset[str]:
        """Those that its parent passes on; the freezer is part of every group."""
        return self._controllers & {"memory", "pids", "cpu"} | {"freezer"}

    @property
    def attach_files(self) -> Sequence[Path]:
        """The one file of the guest's group."""
        return [self._seat / "cgroup.procs"]

    @property
    def runs(self) -> V2Runs | None:
        """The groups of its runs; None where it cannot have any."""
        return self._runs

    def set_limits(self, limits: ResourceLimits) -> None:
        """Write memory (swap off), pids and CPU bandwidth."""
        if not self.set_memory(limits.memory_bytes):
            raise LimitExceeded(
                f"memory limit {limits.memory_bytes} is below what the session uses now; "
                "ask for a larger one"
            )
        if "pids" in self._controllers:
            self._write("pids.max", limits.pids)
        if "cpu" in self._controllers:
            quota = max(limits.cpu_millicores * PERIOD_US // 1000, 1000)
            self._write("cpu.max", f"{quota} {PERIOD_US}")

    def set_memory(self, memory_bytes: int) -> bool:
        """Set the limit only when use is below it: the kernel would kill for it, not refuse."""
        if "memory" not in self._controllers:
            return True
        above = self._number("memory.current") - memory_bytes
        if above > 0:
            with suppress(OSError):  # absent before Linux 5.19, EAGAIN when it gets less
                self._write("memory.reclaim", above)
            if self._number("memory.current") > memory_bytes:
                return False
        if self._has("memory.swap.max"):
            self._write("memory.swap.max", 0)
        self._write("memory.max", memory_bytes)
        return True

    def reset_peak(self) -> None:
        """Start a new peak, which the kernel (6.12 on) keeps for each open file.

        Older ones keep one for each group and for ever: there the run's own group has its peak.
        """
        if "memory" in self._controllers:
            self._began_bytes = self._number("memory.current")
        if self._peak is None and self._has("memory.peak"):
            with suppress(OSError):
                self._peak = os.open(self._path / "memory.peak", os.O_RDWR | os.O_CLOEXEC)
        if self._peak is not None:
            try:
                os.write(self._peak, b"reset")
            except OSError:
                self._close_peak()

    def read(self) -> CgroupCounters:
        """Read all counters now."""
        cpu = pairs(self._counters.read(self._path, "cpu.stat"))
        memory = peak = pids = refused = 0
        if "memory" in self._controllers:
            memory = self._number("memory.current")
            peak = self._read_peak()
            self._count_kills()
        if "pids" in self._controllers:
            pids = self._number("pids.current")
            refused = pairs(self._counters.read(self._path, "pids.events")).get("max", 0)
            refused += self._runs.refused() if self._runs is not None else 0
        return CgroupCounters(
            memory_bytes=memory,
            memory_peak_bytes=peak,
            oom_kills=self._oom_kills,
            parent_oom_kills=self._parent_oom_kills,
            pids=pids,
            pids_refused=refused,
            cpu_us=cpu.get("usage_usec", 0),
            cpu_throttled=cpu.get("nr_throttled", 0),
        )

    def pids(self) -> list[int]:
        """Host pids inside, also in the groups below."""
        found: list[int] = []
        with suppress(FileNotFoundError):
            for group in (self._path, *(self._path / name for name in self._below())):
                with suppress(OSError):  # ENODEV: removed between the opening and the reading
                    found += numbers(self._fs.read(group / "cgroup.procs"))
        return found

    def kill(self) -> None:
        """By ``cgroup.kill`` (Linux 5.14 on), which forks cannot outrun; else pid by pid."""
        deadline = time.monotonic() + KILL_WITHIN_S
        by_kernel = self._has("cgroup.kill")
        while pids := self.pids():
            if by_kernel:
                self._write("cgroup.kill", 1)
            else:
                kill_pids(pids)
            if time.monotonic() >= deadline:
                return
            time.sleep(0.0005)

    def freeze(self, within_s: float = KILL_WITHIN_S) -> bool:
        """Stop everything; False when it does not get there in time."""
        if not self._has("cgroup.freeze"):
            return False
        self._write("cgroup.freeze", 1)
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if pairs(self._fs.read(self._path / "cgroup.events")).get("frozen") == 1:
                return True
            time.sleep(0.0002)
        self.thaw()
        return False

    def thaw(self) -> None:
        """Undo ``freeze``."""
        if self._has("cgroup.freeze"):
            self._write("cgroup.freeze", 0)

    def rename(self, name: str) -> None:
        """Nothing: this version cannot rename."""

    def remove(self) -> bool:
        """Remove the group when it is empty, and those below it first."""
        self._counters.close()
        for name in self._below():
            if not remove_group(self._fs, self._path / name):
                return False
        removed = remove_group(self._fs, self._path)
        if removed:
            self._close_peak()
        return removed

    def _count_kills(self) -> None:
        """Split new kills into ours and those of the parent.

        ``oom`` rises where the limit was met and above, ``oom_kill`` where the victim was and
        above: a kill without an ``oom`` of this group or one below came from above it.
        """
        events = pairs(self._counters.read(self._path, "memory.events"))
        kills, ooms = events.get("oom_kill", 0), events.get("oom", 0)
        if kills > self._oom_kills and ooms == self._own_ooms:
            self._parent_oom_kills += kills - self._oom_kills
        self._oom_kills, self._own_ooms = kills, ooms

    def _read_peak(self) -> int:
        if self._peak is not None:
            return int(os.pread(self._peak, 64, 0))
        if not self._has("memory.peak"):  # absent before Linux 5.19
            return 0
        ever, run = self._number("memory.peak"), self._runs.peak() if self._runs else None
        return ever if run is None else min(ever, self._began_bytes + run)

    def _below(self) -> list[str]:
        with suppress(FileNotFoundError):
            return self._fs.children(self._path)
        return []

    def _close_peak(self) -> None:
        if self._peak is not None:
            os.close(self._peak)
            self._peak = None

    def _has(self, name: str) -> bool:
        if name not in self._present and self._fs.exists(self._path / name):
            self._present.add(name)
        return name in self._present

    def _number(self, name: str) -> int:
        return int(self._counters.read(self._path, name))

    def _write(self, name: str, value: int | str) -> None:
        self._fs.write(self._path / name, str(value))
