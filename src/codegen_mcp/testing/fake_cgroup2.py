"""A model of a version 2 hierarchy with the kernel's rules, for hosts that have none.

It keeps the rules that a driver can break: controllers are enabled from the top down, a group with
controllers enabled for its children holds no processes, busy groups cannot be removed.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

CONTROLLER_FILES = {
    "memory": {
        "memory.max": "max\n",
        "memory.swap.max": "max\n",
        "memory.current": "0\n",
        "memory.peak": "0\n",
        "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
        "memory.oom.group": "0\n",
        "memory.reclaim": "",
    },
    "pids": {"pids.max": "max\n", "pids.current": "0\n", "pids.events": "max 0\n"},
    "cpu": {"cpu.max": "max 100000\n"},
}


@dataclass(slots=True)
class Group:
    """One group."""

    files: dict[str, str] = field(default_factory=dict)
    processes: set[int] = field(default_factory=set)
    enabled: set[str] = field(default_factory=set)
    frozen: bool = False


class FakeCgroup2:
    """``CgroupFs`` over groups in memory."""

    def __init__(self, top: Path, controllers: tuple[str, ...] = ("memory", "pids", "cpu")) -> None:
        self.top = top
        self.controllers = set(controllers)
        self.groups: dict[Path, Group] = {top: Group()}
        self.unkillable: set[int] = set()
        self.read_only: set[Path] = set()

    def add(self, path: Path, *processes: int) -> Group:
        """Make a group with processes, below a parent that passes every controller on."""
        self.groups[path.parent].enabled |= self._available(path.parent)
        self.mkdir(path)
        self.groups[path].processes |= set(processes)
        return self.groups[path]

    def read(self, path: Path) -> str:
        """Read a file of a group."""
        group = self._group(path)
        match path.name:
            case "cgroup.procs":
                return "".join(f"{pid}\n" for pid in sorted(group.processes))
            case "cgroup.controllers":
                return " ".join(sorted(self._available(path.parent))) + "\n"
            case "cgroup.subtree_control":
                return " ".join(sorted(group.enabled)) + "\n"
            case "cgroup.events":
                populated = int(bool(group.processes))
                return f"populated {populated}\nfrozen {int(group.frozen)}\n"
            case "cpu.stat":
                return group.files.get("cpu.stat", "usage_usec 0\nuser_usec 0\nsystem_usec 0\n")
            case name:
                return group.files[name]

    def write(self, path: Path, text: str) -> None:
        """Write a file of a group."""
        group = self._group(path)
        if path.parent in self.read_only:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        match path.name:
            case "cgroup.procs":
                if group.enabled and path.parent != self.top:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
                for other in self.groups.values():
                    other.processes.discard(int(text))
                group.processes.add(int(text))
            case "cgroup.subtree_control":
                self._control(path, group, text)
            case "cgroup.kill":
                for below, other in self.groups.items():
                    if below.is_relative_to(path.parent):
                        other.processes &= self.unkillable
            case "cgroup.freeze":
                group.frozen = text == "1"
            case name:
                if name not in group.files:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
                group.files[name] = text

    def mkdir(self, path: Path) -> None:
        """Make a group."""
        if path in self.groups:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        if path.parent not in self.groups:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if path.parent in self.read_only:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        self.groups[path] = Group()
        self._show_files(path)

    def rmdir(self, path: Path) -> None:
        """Remove a group."""
        if path not in self.groups:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if self.groups[path].processes or self.children(path):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        del self.groups[path]

    def children(self, path: Path) -> list[str]:
        """Names of the groups directly below."""
        if path not in self.groups:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return [found.name for found in self.groups if found.parent == path]

    def exists(self, path: Path) -> bool:
        """Whether a group or file is there."""
        if path in self.groups:
            return True
        group = self.groups.get(path.parent)
        if group is None:
            return False
        if path.name in ("cgroup.type", "cgroup.kill", "cgroup.freeze"):
            return path.parent != self.top
        return path.name.startswith("cgroup.") or path.name in group.files

    def _control(self, path: Path, group: Group, text: str) -> None:
        sign, controller = text[0], text[1:]
        if sign == "+":
            if controller not in self._available(path.parent):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            if group.processes and path.parent != self.top:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
            group.enabled.add(controller)
        else:
            below = [path.parent / name for name in self.children(path.parent)]
            if any(controller in self.groups[child].enabled for child in below):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
            group.enabled.discard(controller)
        for child in self.children(path.parent):
            self._show_files(path.parent / child)

    def _available(self, path: Path) -> set[str]:
        return self.controllers if path == self.top else self.groups[path.parent].enabled

    def _show_files(self, path: Path) -> None:
        group = self.groups[path]
        for controller, files in CONTROLLER_FILES.items():
            for name, content in files.items():
                if controller in self._available(path):
                    group.files.setdefault(name, content)
                else:
                    group.files.pop(name, None)

    def _group(self, path: Path) -> Group:
        if path.parent not in self.groups:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self.groups[path.parent]
