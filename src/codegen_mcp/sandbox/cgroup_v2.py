"""Control groups, version 2: one group of one hierarchy for each session.

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

CONTROLLERS = ("memory", "pids", "cpu")
PERIOD_US = 100_000
KILL_WITHIN_S = 0.1


class V2Cgroup:
    """A session's group. Files that a controller would bring are optional, one by one.

    ``memory.oom.group`` stays 0: the kernel kills the largest process, the worker then ends the
    run, and the guest (so the session) survives, as on version 1.
    """

    def __init__(self, path: Path, fs: CgroupFs) -> None:
        self._path = path
        self._fs = fs
        self._counters = Counters(fs)
        self._controllers = frozenset(fs.read(path / "cgroup.controllers").split())
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
        """The one file."""
        return [self._path / "cgroup.procs"]

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
        """Start a new peak, which the kernel (6.12 on) keeps for each open file."""
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
        """Host pids inside."""
        with suppress(FileNotFoundError):
            return numbers(self._fs.read(self._path / "cgroup.procs"))
        return []

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
        """Remove the group when it is empty."""
        self._counters.close()
        removed = remove_group(self._fs, self._path)
        if removed:
            self._close_peak()
        return removed

    def _count_kills(self) -> None:
        """Split new kills into ours and those of the parent.

        ``oom`` of the local events rises where the limit was met, ``oom_kill`` where the victim
        was; a kill without an ``oom`` of this group came from above it.
        """
        name = "memory.events.local" if self._has("memory.events.local") else "memory.events"
        events = pairs(self._counters.read(self._path, name))
        kills, ooms = events.get("oom_kill", 0), events.get("oom", 0)
        if kills > self._oom_kills and ooms == self._own_ooms:
            self._parent_oom_kills += kills - self._oom_kills
        self._oom_kills, self._own_ooms = kills, ooms

    def _read_peak(self) -> int:
        if self._peak is not None:
            return int(os.pread(self._peak, 64, 0))
        return self._number("memory.peak") if self._has("memory.peak") else 0

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
