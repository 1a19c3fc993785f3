"""Removes what a worker that was killed left in the kernel: processes, groups, mounts, devices.

Run it once at start, after the state directory was locked and before anything of this worker's
own is made. Files are not touched: sessions are adopted, and the engine deletes what cannot be.
Only what is proven to be the dead worker's is removed: processes inside its control groups, those
that run as host users of which this worker holds the lease and the dead one was the last holder,
and, for a worker that is not root, those of its own user in another mount namespace that has a
part of the state directory bound into it. Mounts and devices count when they lie below it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from codegen_mcp.sandbox import loop_device
from codegen_mcp.sandbox.cgroup import CgroupDriver
from codegen_mcp.sandbox.host_processes import kill_matching, runs_as
from codegen_mcp.sandbox.mounts import (
    MNT_DETACH,
    UMOUNT_NOFOLLOW,
    mounts_below,
    read_mounts,
    unmount,
)


@dataclass(slots=True)
class Reaped:
    """What was found and removed; ``left`` names what could not be."""

    cgroups: list[str] = field(default_factory=list)
    processes: int = 0
    mounts: list[str] = field(default_factory=list)
    loop_devices: list[int] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def found_any(self) -> bool:
        """Whether there was anything at all."""
        return bool(self.cgroups or self.processes or self.mounts or self.loop_devices or self.left)


def reap(
    state_directory: Path, *, cgroups: CgroupDriver | None, uids: Collection[int] = ()
) -> Reaped:
    """Remove everything that is left; blocks for at most some seconds.

    Args:
        state_directory: Locked by the caller.
        cgroups: Of this state directory's token.
        uids: ``UidLeases.reclaim()``; empty for a worker that is not root.
    """
    state_directory = state_directory.resolve()
    result = Reaped()
    if cgroups:
        result.cgroups = cgroups.remove_stale()
    if uids:
        _kill(runs_as(uids), result)
    if os.geteuid() != 0:
        _kill(_has_bound(state_directory), result)
    for entry in mounts_below(state_directory):
        _unmount(entry.mount_point, result)
    for number, _ in loop_device.devices_below(state_directory):
        try:
            loop_device.detach(number)
            result.loop_devices.append(number)
        except OSError as error:
            result.left.append(f"/dev/loop{number}: {error.strerror}")
    return result


def _kill(is_ours: Callable[[int], bool], result: Reaped) -> None:
    killed, left = kill_matching(is_ours)
    result.processes += killed
    result.left.extend(f"process {pid}" for pid in left)


def _unmount(mount_point: Path, result: Reaped) -> None:
    try:
        try:
            unmount(mount_point)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            unmount(mount_point, MNT_DETACH | UMOUNT_NOFOLLOW)
        result.mounts.append(str(mount_point))
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: gone with the one above it
            result.left.append(f"{mount_point}: {error.strerror}")


def _has_bound(state_directory: Path) -> Callable[[int], bool]:
    """Test for processes of our own user in whose namespace a part of the directory is bound."""
    own = os.geteuid()
    as_self = runs_as({own})
    mine = os.readlink("/proc/self/ns/mnt")
    below = max(
        (entry for entry in read_mounts() if state_directory.is_relative_to(entry.mount_point)),
        key=lambda entry: (len(entry.mount_point.parts), entry.mount_id),
    )
    bound = below.root / state_directory.relative_to(below.mount_point)

    def test(pid: int) -> bool:
        if not as_self(pid):
            return False
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/mnt") == mine:
                return False
        with suppress(OSError, ValueError):
            return any(
                entry.device == below.device and entry.root.is_relative_to(bound)
                for entry in read_mounts(pid)
            )
        return False

    return test
