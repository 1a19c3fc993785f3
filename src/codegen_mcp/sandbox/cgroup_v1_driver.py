"""Version 1: makes session groups in every hierarchy, below one parent that caps them all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from codegen_mcp.sandbox.cgroup_files import CgroupFs, KernelCgroupFs, find_groups, remove_group
from codegen_mcp.sandbox.cgroup_v1 import ParentOom, V1Cgroup

CLEAR_WITHIN_S = 2.0


class V1Driver:
    """Groups below one parent; made by ``cgroup_detect``, which has tried every controller."""

    def __init__(
        self,
        parents: Mapping[str, Path],
        tops: Mapping[str, Path],
        memory_bytes: int,
        fs: CgroupFs | None = None,
    ) -> None:
        """Make the parents and cap them.

        Args:
            parents: Controller to the parent directory in its hierarchy.
            tops: Controller to that hierarchy's mount point, searched for a dead worker's groups.
            memory_bytes: What all sessions together may use.
            fs: Another cgroupfs, for tests.
        """
        self._fs = fs or KernelCgroupFs()
        self._parents = dict(parents)
        self._tops = dict(tops)
        self._oom: ParentOom | None = None
        for parent in dict.fromkeys(self._parents.values()):
            with suppress(FileExistsError):
                self._fs.mkdir(parent)
        if "memory" in self._parents:
            self._cap(self._parents["memory"], memory_bytes)

    @property
    def version(self) -> int:
        """1."""
        return 1

    @property
    def controllers(self) -> frozenset[str]:
        """Those that can be used; cpuacct belongs to cpu."""
        return frozenset(self._parents) - {"cpuacct"}

    def create(self, name: str) -> V1Cgroup:
        """Make a group in every hierarchy, or in none."""
        paths = {controller: parent / name for controller, parent in self._parents.items()}
        made: list[Path] = []
        try:
            for path in dict.fromkeys(paths.values()):
                self._fs.mkdir(path)
                made.append(path)
        except OSError:
            for path in made:
                self._fs.rmdir(path)
            raise
        return V1Cgroup(paths, self._oom, self._fs)

    def remove_stale(self) -> list[str]:
        """Also where a dead worker had its parent in another place of the hierarchy."""
        name = next(iter(self._parents.values())).name
        groups: dict[str, dict[str, Path]] = {}
        parents: list[Path] = []
        for controller, top in self._tops.items():
            for parent in list(find_groups(self._fs, top, name)):
                parents.append(parent)
                for child in self._fs.children(parent):
                    paths = groups.setdefault(child, {})
                    paths[str(parent) if controller in paths else controller] = parent / child
        for paths in groups.values():
            self._clear(V1Cgroup(paths, None, self._fs))
        for parent in set(parents) - set(self._parents.values()):
            remove_group(self._fs, parent)
        return list(groups)

    def close(self) -> None:
        """Remove the parent when it is empty."""
        if self._oom:
            self._oom.close()
            self._oom = None
        for parent in dict.fromkeys(self._parents.values()):
            remove_group(self._fs, parent)

    def _cap(self, parent: Path, memory_bytes: int) -> None:
        hierarchical = parent / "memory.use_hierarchy"
        # Kernels before 5.11 limit children by their parents only where this is set.
        if self._fs.exists(hierarchical) and self._fs.read(hierarchical).strip() == "0":
            self._fs.write(hierarchical, "1")
        V1Cgroup({"memory": parent}, None, self._fs).set_memory(memory_bytes)
        with suppress(OSError):  # absent from kernels built without v1 events: refusals decide
            self._oom = ParentOom(parent)

    @staticmethod
    def _clear(cgroup: V1Cgroup) -> None:
        cgroup.thaw()
        deadline = time.monotonic() + CLEAR_WITHIN_S
        cgroup.kill()
        while not cgroup.remove() and time.monotonic() < deadline:
            time.sleep(0.001)
            cgroup.kill()
