"""A small file system, for tests of a host that fills up; needs root and loop devices."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codegen_mcp.sandbox import mounts
from codegen_mcp.sandbox.loop_device import attached
from codegen_mcp.sandbox.volumes.image import find_tool


@contextmanager
def small_host(directory: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a new ext4 of that size below the directory while the block runs."""
    image = directory / "small-host.img"
    root = directory / "small-host"
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    subprocess.run([find_tool("mkfs.ext4"), "-q", "-F", "-m0", "-b4096", str(image)], check=True)
    root.mkdir()
    # Workers of other tests have copies of all mounts; a shared parent tells them of an unmount,
    # which would else leave the device to them for as long as they live (mount_namespaces(7)).
    subprocess.run(["mount", "--bind", "--make-shared", directory, directory], check=True)
    with attached(image) as device:
        mounts.mount(str(device), root, "ext4", mounts.MS_NOATIME)
    try:
        yield root
    finally:
        for entry in mounts.mounts_below(root):  # what a failed test left on it comes first
            mounts.unmount(entry.mount_point, mounts.MNT_DETACH)
        mounts.unmount(directory, mounts.MNT_DETACH)
        image.unlink()


def fill(directory: Path, leave_bytes: int = 0) -> Path:
    """Write a file until nothing (or about that much) is left; return it."""
    path = directory / "filler"
    block = b"\xff" * 65536
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(block)
        except OSError:
            pass
        if leave_bytes:
            file.truncate(max(file.tell() - leave_bytes, 0))
    return path
