"""Which control groups this host lets us use, found by using them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.sandbox import cgroup_v1, cgroup_v2
from codegen_mcp.sandbox.cgroup import Cgroup, CgroupDriver
from codegen_mcp.sandbox.cgroup_files import (
    Hierarchy,
    KernelCgroupFs,
    hierarchies_v1,
    hierarchy_v2,
    pairs,
    remove_group,
)
from codegen_mcp.sandbox.cgroup_v1_driver import V1Driver
from codegen_mcp.sandbox.cgroup_v2_driver import V2Driver
from codegen_mcp.sandbox.fixes import control_groups
from codegen_mcp.sandbox.place import find_place

MIN_RESERVE = 256 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What was found."""

    driver: CgroupDriver | None
    """None where no controller at all can be used."""
    memory_bytes: int
    """Cap of all sessions together."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Controller to the kernel's reason why it cannot be used."""
    fix: str = ""
    """What to do to get what was refused."""


def detect(token: str, *, memory_reserve_bytes: int = 0) -> Detection:
    """Try version 2, then version 1; blocks for some 30 ms, for start-up.

    Each controller counts only when a group could be made with it, a limit written and a process
    attached. Nothing but the driver's empty parent group is left.

    Args:
        token: Names the worker's groups; the same for every start on one state directory.
        memory_reserve_bytes: Kept for the worker and the host; 0 is a tenth, at least 256 MiB.
    """
    name = f"codegen-{token}"
    refused: dict[str, str] = {}
    unified = hierarchy_v2()
    versions = hierarchies_v1()
    own = [unified.own] if unified else []
    if "memory" in versions:
        own.append(versions["memory"].own)
    memory_bytes = _session_memory(own, memory_reserve_bytes)
    driver = _detect_v2(unified, name, memory_bytes, refused) if unified else None
    if driver is None:
        driver = _detect_v1(versions, name, memory_bytes, refused)
    usable = driver.controllers if driver else frozenset()
    missing = {
        controller: refused.get(controller, "not mounted")
        for controller in ("memory", "pids", "cpu", "freezer")
        if controller not in usable
    }
    return Detection(
        driver=driver,
        memory_bytes=memory_bytes,
        refused=missing,
        fix=control_groups(find_place()) if missing else "",
    )


def _detect_v2(
    unified: Hierarchy, name: str, memory_bytes: int, refused: dict[str, str]
) -> CgroupDriver | None:
    """Use the own group, or as root the host's root group where the own has other users."""
    candidates = [unified.own]
    if os.geteuid() == 0 and unified.mount_point != unified.own:
        candidates.append(unified.mount_point)
    for candidate in candidates:
        try:
            offered = (candidate / "cgroup.controllers").read_text().split()
            if "memory" not in offered:
                refused.setdefault("memory", f"not offered in {candidate}")
                continue
            driver = V2Driver(candidate, unified.mount_point, name, memory_bytes)
        except OSError as error:
            for controller in (*cgroup_v2.CONTROLLERS, "freezer"):
                refused.setdefault(controller, _reason(error, candidate))
            continue
        try:
            _try_group(driver)
        except OSError as error:
            refused.setdefault("memory", _reason(error, candidate))
            driver.close()
            continue
        return driver
    return None


def _detect_v1(
    versions: Mapping[str, Hierarchy], name: str, memory_bytes: int, refused: dict[str, str]
) -> CgroupDriver | None:
    parents: dict[str, Path] = {}
    for controller in cgroup_v1.CONTROLLERS:
        if controller not in versions:
            continue
        parent = versions[controller].own / name
        driver = None
        try:
            tops = {controller: versions[controller].mount_point}
            driver = V1Driver({controller: parent}, tops, memory_bytes)
            _try_group(driver)
        except OSError as error:
            refused[controller] = _reason(error, parent.parent)
        else:
            parents[controller] = parent
        finally:
            if driver:
                driver.close()
            elif parent.exists():
                remove_group(KernelCgroupFs(), parent)
    if not parents:
        return None
    tops = {controller: versions[controller].mount_point for controller in parents}
    return V1Driver(parents, tops, memory_bytes)


def _try_group(driver: CgroupDriver) -> None:
    """Make a group, limit it, put a process in, kill it there, remove it. OSError if any fails."""
    group = driver.create(f"probe-{os.getpid()}")
    try:
        group.set_limits(ResourceLimits(memory_bytes=64 * MIB))
        _try_process(group)
    finally:
        for _ in range(100):
            if group.remove():
                break
            group.kill()


def _try_process(group: Cgroup) -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        try:
            for path in group.attach_files:
                KernelCgroupFs().write(path, str(child.pid))
            if child.pid not in group.pids():
                raise OSError(errno.EPERM, "a process that was attached is not in the group")
        finally:
            group.kill()
            child.kill()


def _session_memory(own: list[Path], reserve_bytes: int) -> int:
    """What sessions may use together: the host's or the enclosing group's memory less a reserve."""
    ceiling = _host_memory()
    for directory in own:
        ceiling = min(ceiling, _limit_above(directory, ceiling))
    reserve = reserve_bytes or max(ceiling // 10, MIN_RESERVE)
    return max(ceiling - reserve, ceiling // 2)


def _host_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _limit_above(directory: Path, ceiling: int) -> int:
    """The tightest memory limit on the way up from a group."""
    with suppress(OSError):
        stat = pairs((directory / "memory.stat").read_text())
        ceiling = min(ceiling, stat.get("hierarchical_memory_limit", ceiling))
    for group in (directory, *directory.parents):
        with suppress(OSError):
            text = (group / "memory.max").read_text().strip()
            if text.isdecimal():
                ceiling = min(ceiling, int(text))
    return ceiling


def _reason(error: OSError, group: Path) -> str:
    return f"{os.strerror(error.errno or 0)} in {group}"
