"""Version 2: splits the worker's own group, and makes session groups below one capped parent.

A group with controllers enabled for its children may not hold processes, so that the worker moves
to a leaf. Source: kernel Documentation/admin-guide/cgroup-v2.rst ("No Internal Process
Constraint", "Delegation").
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from codegen_mcp.sandbox.cgroup_files import (
    CgroupFs,
    KernelCgroupFs,
    find_groups,
    numbers,
    remove_group,
)
from codegen_mcp.sandbox.cgroup_v2 import CONTROLLERS, V2Cgroup
from codegen_mcp.sandbox.cgroup_v2_runs import SEAT

CLEAR_WITHIN_S = 2.0
LEAF = re.compile(r"codegen-[0-9a-z]+-worker")


class V2Driver:
    """Groups below ``<own>/<name>``; the worker itself moves to ``<own>/<name>-worker``.

    One that starts in such a leaf (of a worker before it, or of one that moved their common shell)
    stays there and builds beside it.
    """

    def __init__(
        self, own: Path, top: Path, name: str, memory_bytes: int, fs: CgroupFs | None = None
    ) -> None:
        """Split the own group and cap the sessions' parent.

        Args:
            own: The group to build below: delegated to this process, or the host's root.
            top: Mount point, searched for a dead worker's groups.
            name: Of the parent group.
            memory_bytes: What all sessions together may use.
            fs: Another cgroupfs, for tests.

        Raises:
            OSError: Not delegated, or other processes are in ``own`` (EBUSY).
        """
        self._fs = fs or KernelCgroupFs()
        inherited = LEAF.fullmatch(own.name) is not None
        self._own = own.parent if inherited else own
        self._top = top
        self._parent = self._own / name
        self._leaf = own if inherited else own / f"{name}-worker"
        self._is_host_root = not self._fs.exists(self._own / "cgroup.type")
        self._enabled = self._enabled_below(self._own) if inherited else []
        try:
            self._build(memory_bytes)
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """2."""
        return 2

    @property
    def controllers(self) -> frozenset[str]:
        """Enabled for sessions; the freezer is part of every group of this version."""
        return frozenset(self._enabled_below(self._parent)) | {"freezer"}

    def create(self, name: str) -> V2Cgroup:
        """Make one without limits, with a group in it for the guest and room for its runs'."""
        group = self._parent / name
        self._fs.mkdir(group)
        try:
            self._enable(group)
            self._fs.mkdir(group / SEAT)
        except OSError:
            remove_group(self._fs, group)
            raise
        return V2Cgroup(group, self._fs)

    def remove_stale(self) -> list[str]:
        """Also where a dead worker had its parent in another place."""
        removed = []
        for parent in list(find_groups(self._fs, self._top, self._parent.name)):
            for child in self._fs.children(parent):
                self._clear(V2Cgroup(parent / child, self._fs))
                removed.append(child)
            if parent != self._parent:
                remove_group(self._fs, parent)
                remove_group(self._fs, parent.with_name(f"{parent.name}-worker"))
        return removed

    def close(self) -> None:
        """Remove the parent when it is empty, and put the worker back where it was."""
        if not remove_group(self._fs, self._parent) or self._is_host_root:
            return
        with suppress(OSError):
            for controller in self._enabled:
                self._fs.write(self._own / "cgroup.subtree_control", f"-{controller}")
            for pid in numbers(self._fs.read(self._leaf / "cgroup.procs")):
                self._fs.write(self._own / "cgroup.procs", str(pid))
            remove_group(self._fs, self._leaf)

    def _build(self, memory_bytes: int) -> None:
        if not self._is_host_root:
            self._move_to_leaf()
        self._enable(self._own)
        with suppress(FileExistsError):
            self._fs.mkdir(self._parent)
        self._enable(self._parent)
        if self._fs.exists(self._parent / "memory.max"):
            self._fs.write(self._parent / "memory.max", str(memory_bytes))

    def _move_to_leaf(self) -> None:
        """Move this process and its relatives; a stranger makes enabling fail, which is right."""
        if not self._fs.exists(self._leaf):
            self._fs.mkdir(self._leaf)
        for pid in numbers(self._fs.read(self._own / "cgroup.procs")):
            if pid in _relatives():
                self._fs.write(self._leaf / "cgroup.procs", str(pid))

    def _enable(self, group: Path) -> None:
        available = self._fs.read(group / "cgroup.controllers").split()
        for controller in CONTROLLERS:
            if controller in available and controller not in self._enabled_below(group):
                self._fs.write(group / "cgroup.subtree_control", f"+{controller}")
                if group == self._own:
                    self._enabled.append(controller)

    def _enabled_below(self, group: Path) -> list[str]:
        return self._fs.read(group / "cgroup.subtree_control").split()

    @staticmethod
    def _clear(cgroup: V2Cgroup) -> None:
        cgroup.thaw()
        deadline = time.monotonic() + CLEAR_WITHIN_S
        cgroup.kill()
        while not cgroup.remove() and time.monotonic() < deadline:
            time.sleep(0.001)
            cgroup.kill()


def _relatives() -> frozenset[int]:
    """This process, its ancestors and its descendants."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError, IndexError, ValueError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])

    def ancestry(pid: int) -> set[int]:
        chain = set()
        while pid > 0 and pid not in chain:
            chain.add(pid)
            pid = parents.get(pid, 0)
        return chain

    me = os.getpid()
    return frozenset(ancestry(me) | {pid for pid in parents if me in ancestry(pid)})
