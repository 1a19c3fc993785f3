"""What of a test still exists in the kernel: mounts, loop devices, control groups."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codegen_mcp.sandbox.cgroup_files import (
    KernelCgroupFs,
    find_groups,
    hierarchies_v1,
    hierarchy_v2,
)
from codegen_mcp.sandbox.loop_device import devices_below
from codegen_mcp.sandbox.mounts import mounts_below

_FREED_WITHIN_S = 15.0
"""A sandbox that starts beside holds every mount of its moment for as long as it boots."""


def kernel_objects(directory: Path, token: str = "") -> list[str]:
    """Name what lies below a directory or carries a worker's token; other tests' are not seen."""
    directory = directory.resolve()
    found = [f"mount {entry.mount_point}" for entry in mounts_below(directory)]
    found += [f"/dev/loop{number} on {path}" for number, path in devices_below(directory)]
    tops = {hierarchy.mount_point for hierarchy in hierarchies_v1().values()}
    if unified := hierarchy_v2():
        tops.add(unified.mount_point)
    if token:
        for top in tops:
            for name in (f"codegen-{token}", f"codegen-{token}-worker"):
                found += [f"cgroup {path}" for path in find_groups(KernelCgroupFs(), top, name)]
    return found


@contextmanager
def nothing_left(directory: Path, token: str = "") -> Iterator[None]:
    """Fail when the block leaves something; the kernel frees devices a moment after an unmount."""
    yield
    deadline = time.monotonic() + _FREED_WITHIN_S
    while left := kernel_objects(directory, token):
        if time.monotonic() >= deadline:
            raise AssertionError(f"left in the kernel: {left}")
        time.sleep(0.01)
