"""Control groups of runs, version 2: one below the session's for each, made ahead of its use.

Moving a process takes some 10 ms (it waits for an RCU grace period), so the spare that waits for a
run is moved as soon as there is one. Its group has ``memory.oom.group``: the kernel then ends the
whole run, and neither the guest nor what runs beside. What was charged before the move stays with
the guest's group. Source: kernel Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from codegen_mcp.sandbox.cgroup_files import CgroupFs, numbers, pairs, remove_group

SEAT = "guest"
"""The guest's own group: one with controllers for its children may not hold processes itself."""
PREFIX = "run-"


class V2Runs:
    """The groups of one session's runs. Its parts may be called from several threads."""

    def __init__(self, session: Path, fs: CgroupFs) -> None:
        self._session = session
        self._fs = fs
        self._lock = threading.Lock()
        self._groups: dict[int, Path] = {}
        """By the number of the spare, of those that wait and the one that runs."""
        self._over: list[Path] = []
        self._running = 0
        self._made = 0
        self._refused = 0
        """Forks that were refused in groups that are gone."""

    def prepare(self, number: int, pid: int) -> bool:
        """Move a spare into a group of its own; False when it is not found. Blocks for 10 ms.

        Args:
            number: The spare's.
            pid: Its process id inside, as the guest says: only a process of the guest's own group
                is ever moved.
        """
        self.sweep()
        host_pid = self._host_pid(pid)
        if not host_pid:
            return False
        with self._lock:
            self._made += 1
            group = self._session / f"{PREFIX}{self._made}"
        try:
            self._fs.mkdir(group)
            if self._fs.exists(group / "memory.oom.group"):
                self._fs.write(group / "memory.oom.group", "1")
            self._fs.write(group / "cgroup.procs", str(host_pid))
        except OSError:  # it ended meanwhile, or the session did
            with suppress(OSError):
                remove_group(self._fs, group)
            return False
        with self._lock:
            if number in self._groups:  # of a guest before this one
                self._over.append(self._groups[number])
            self._groups[number] = group
        return True

    def begin(self, number: int) -> None:
        """A spare became a run, whether its group is ready or comes a moment later."""
        self._running = number

    def end(self) -> None:
        """The run is over; its group goes when the next one is prepared."""
        with self._lock:
            for number in [number for number in self._groups if number <= self._running]:
                self._over.append(self._groups.pop(number))
            self._running = 0

    def kill(self) -> bool:
        """End every process of the run at once, whatever forks; False where it has no group."""
        group = self.current
        if group is None or not self._fs.exists(group / "cgroup.kill"):
            return False
        with suppress(OSError):
            self._fs.write(group / "cgroup.kill", "1")
            return True
        return False

    @property
    def current(self) -> Path | None:
        """The group of the run that is under way."""
        return self._groups.get(self._running)

    def peak(self) -> int | None:
        """Most memory that the run had; None where it has no group."""
        group = self.current
        if group is not None:
            with suppress(OSError, ValueError):
                return int(self._fs.read(group / "memory.peak"))
        return None

    def refused(self) -> int:
        """Forks that pids.max refused: the kernel counts them where the forking process is."""
        with self._lock:
            groups = [*self._groups.values(), *self._over]
        return self._refused + sum(map(self._refused_in, [self._session / SEAT, *groups]))

    def sweep(self) -> None:
        """Remove the groups of runs that are over; those that are not empty yet stay."""
        with self._lock:
            over, self._over = self._over, []
        for group in over:
            refused = self._refused_in(group)
            gone = False
            with suppress(OSError):
                gone = remove_group(self._fs, group)
            with self._lock:
                if gone:
                    self._refused += refused
                else:
                    self._over.append(group)

    def _refused_in(self, group: Path) -> int:
        with suppress(OSError):
            return pairs(self._fs.read(group / "pids.events")).get("max", 0)
        return 0

    def _host_pid(self, pid: int) -> int:
        """Find the guest group's process that has this number inside (proc_pid_status(5))."""
        with suppress(OSError):
            for candidate in numbers(self._fs.read(self._session / SEAT / "cgroup.procs")):
                with suppress(OSError, IndexError, ValueError):
                    for line in Path(f"/proc/{candidate}/status").read_text().splitlines():
                        if line.startswith("NSpid:") and int(line.split()[-1]) == pid:
                            return candidate
        return 0
