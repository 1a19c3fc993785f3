"""Control groups, version 1: one hierarchy for each controller.

A session's group exists once in every hierarchy that can be used, below one parent for the whole
worker, which lies below the worker's own group. Sources: kernel Documentation/admin-guide/
cgroup-v1/ (memory.rst, freezer-subsystem.rst, pids.rst, cpuacct.rst) and scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from codegen_mcp.core.errors import LimitExceeded
from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.sandbox.cgroup import CgroupCounters, RunGroups
from codegen_mcp.sandbox.cgroup_files import (
    CgroupFs,
    Counters,
    KernelCgroupFs,
    kill_pids,
    numbers,
    pairs,
    remove_group,
)

CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "freezer")
PERIOD_US = 100_000
"""The kernel's default bandwidth period."""
KILL_WITHIN_S = 0.1
FREEZE_AFTER = 4
HUGE_PAGE = 2 * MIB
_UNLIMITED = -1


class V1Cgroup:
    """A session's groups, by controller (those mounted together share a directory)."""

    def __init__(self, paths: Mapping[str, Path], parent: ParentOom | None, fs: CgroupFs) -> None:
        self._paths = dict(paths)
        self._fs = fs
        self._counters = Counters(fs)
        self._parent = parent
        self._has_memsw = self._has("memory", "memory.memsw.limit_in_bytes")
        self._has_pids_events = self._has("pids", "pids.events")
        self._oom_kills = 0
        self._parent_oom_kills = 0
        self._parent_alarms = parent.count() if parent else 0

    @property
    def controllers(self) -> frozenset[str]:
        """Those it has a directory for; cpuacct belongs to cpu."""
        return frozenset(self._paths) - {"cpuacct"}

    @property
    def attach_files(self) -> Sequence[Path]:
        """One file for each hierarchy; the first write waits for the kernel, the rest do not."""
        return [directory / "cgroup.procs" for directory in self._directories()]

    @property
    def runs(self) -> RunGroups | None:
        """None: this version has a session's group for each controller and none below."""
        return None

    def set_limits(self, limits: ResourceLimits) -> None:
        """Write memory (swap off), pids and CPU bandwidth."""
        if not self.set_memory(limits.memory_bytes):
            raise LimitExceeded(
                f"memory limit {limits.memory_bytes} is below what the session uses now; "
                "ask for a larger one"
            )
        if "pids" in self._paths:
            self._write("pids", "pids.max", limits.pids)
        if "cpu" in self._paths:
            self._set_cpu(limits.cpu_millicores)

    def set_memory(self, memory_bytes: int) -> bool:
        """Set the limit; the kernel first drops page cache, and refuses when that is not enough."""
        if "memory" not in self._paths:
            return True
        names = ["memory.limit_in_bytes"]
        if self._has_memsw:
            # memory <= memory+swap holds at every moment, so that the order depends on the way.
            above = self._paths["memory"] / "memory.memsw.limit_in_bytes"
            rising = memory_bytes > int(self._fs.read(above))
            names.insert(0 if rising else 1, "memory.memsw.limit_in_bytes")
        try:
            for name in names:
                self._write("memory", name, memory_bytes)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def reset_peak(self) -> None:
        """Start a new peak reading."""
        names = ["memory.max_usage_in_bytes"] if "memory" in self._paths else []
        names += ["memory.memsw.max_usage_in_bytes"] if self._has_memsw else []
        for name in names:
            self._counters.write(self._paths["memory"], name, "0")

    def read(self) -> CgroupCounters:
        """Read all counters now."""
        memory = peak = pids = refused = cpu_us = throttled = 0
        if "memory" in self._paths:
            memory = int(self._read("memory", "memory.usage_in_bytes"))
            peak = int(self._read("memory", "memory.max_usage_in_bytes"))
            self._count_kills()
        if "pids" in self._paths:
            pids = int(self._read("pids", "pids.current"))
            if self._has_pids_events:
                refused = pairs(self._read("pids", "pids.events")).get("max", 0)
        if "cpuacct" in self._paths:
            cpu_us = int(self._read("cpuacct", "cpuacct.usage")) // 1000
        if "cpu" in self._paths:
            throttled = pairs(self._read("cpu", "cpu.stat")).get("nr_throttled", 0)
        return CgroupCounters(
            memory_bytes=memory,
            memory_peak_bytes=peak,
            oom_kills=self._oom_kills,
            parent_oom_kills=self._parent_oom_kills,
            pids=pids,
            pids_refused=refused,
            cpu_us=cpu_us,
            cpu_throttled=throttled,
        )

    def pids(self) -> list[int]:
        """Union over the hierarchies: a process that is just being attached is in some only."""
        found: set[int] = set()
        for directory in self._directories():
            with suppress(FileNotFoundError):
                found.update(numbers(self._fs.read(directory / "cgroup.procs")))
        return sorted(found)

    def kill(self) -> None:
        """SIGKILL until nothing is left; what forks faster than that is frozen in between."""
        deadline = time.monotonic() + KILL_WITHIN_S
        for attempt in count():
            pids = self.pids()
            if not pids or time.monotonic() >= deadline:
                return
            if attempt < FREEZE_AFTER:
                kill_pids(pids)
            else:
                self._freeze(KILL_WITHIN_S / 10)
                kill_pids(self.pids())
                self.thaw()  # a frozen process ignores even SIGKILL
            time.sleep(0.0005)

    def freeze(self, within_s: float = KILL_WITHIN_S) -> bool:
        """Stop everything; False when there is no freezer or it does not get there in time."""
        if self._freeze(within_s):
            return True
        self.thaw()
        return False

    def _freeze(self, within_s: float) -> bool:
        if "freezer" not in self._paths:
            return False
        with suppress(FileNotFoundError):
            self._write("freezer", "freezer.state", "FROZEN")
            deadline = time.monotonic() + within_s
            while time.monotonic() < deadline:
                if self._read("freezer", "freezer.state").strip() == "FROZEN":
                    return True
                time.sleep(0.0002)
        return False

    def thaw(self) -> None:
        """Undo ``freeze``."""
        if "freezer" in self._paths:
            with suppress(FileNotFoundError):
                self._write("freezer", "freezer.state", "THAWED")

    def rename(self, name: str) -> None:
        """Rename in every hierarchy."""
        renamed = {path: path.with_name(name) for path in self._directories()}
        for old, new in renamed.items():
            os.rename(old, new)
        self._paths = {controller: renamed[path] for controller, path in self._paths.items()}

    def remove(self) -> bool:
        """Remove the groups; what is gone already is fine."""
        self._counters.close()
        results = [remove_group(self._fs, path) for path in self._directories()]
        return all(results)

    def _set_cpu(self, millicores: int) -> None:
        quota = max(millicores * PERIOD_US // 1000, 1000)  # the kernel's least is 1 ms
        self._write("cpu", "cpu.cfs_period_us", PERIOD_US)
        try:
            self._write("cpu", "cpu.cfs_quota_us", quota)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # More than a group above us has: unlimited here means that group's limit.
            self._write("cpu", "cpu.cfs_quota_us", _UNLIMITED)

    def _count_kills(self) -> None:
        """Split new kills into ours and those from above.

        This version counts a kill where the victim was, whichever limit was met. It came from
        above when the parent's alarm rang, or when this group was never near its own limit (a
        charge that fails is at most one huge page).
        """
        kills = pairs(self._read("memory", "memory.oom_control")).get("oom_kill", 0)
        alarms = self._parent.count() if self._parent else 0
        if kills > self._oom_kills and (alarms > self._parent_alarms or not self._was_at_limit()):
            self._parent_oom_kills += kills - self._oom_kills
        self._oom_kills, self._parent_alarms = kills, alarms

    def _was_at_limit(self) -> bool:
        prefix = "memory.memsw." if self._has_memsw else "memory."
        peak = int(self._read("memory", f"{prefix}max_usage_in_bytes"))
        return peak > int(self._read("memory", f"{prefix}limit_in_bytes")) - 2 * HUGE_PAGE

    def _directories(self) -> list[Path]:
        return list(dict.fromkeys(self._paths.values()))

    def _has(self, controller: str, name: str) -> bool:
        return controller in self._paths and self._fs.exists(self._paths[controller] / name)

    def _read(self, controller: str, name: str) -> str:
        return self._counters.read(self._paths[controller], name)

    def _write(self, controller: str, name: str, value: int | str) -> None:
        self._fs.write(self._paths[controller] / name, str(value))


class ParentOom:
    """Counts how often the parent group (or one above it) ran out of memory.

    The kernel rings an eventfd for a group and everything below the one that is out of memory, so
    that the parent's rings only for the parent or what is above it.
    """

    def __init__(self, parent: Path) -> None:
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._count = 0
        try:
            control = os.open(parent / "memory.oom_control", os.O_RDONLY)
            try:
                registration = f"{self._eventfd} {control}"
                KernelCgroupFs().write(parent / "cgroup.event_control", registration)
            finally:
                os.close(control)
        except OSError:
            os.close(self._eventfd)
            raise

    def count(self) -> int:
        """Alarms since the worker began."""
        if self._eventfd >= 0:
            with suppress(BlockingIOError):
                self._count += os.eventfd_read(self._eventfd)
        return self._count

    def close(self) -> None:
        """Stop counting; the registration ends with the descriptor."""
        if self._eventfd >= 0:
            os.close(self._eventfd)
            self._eventfd = -1
