"""Mounting image volumes, with the options that they need.

Sources: ext4(5), mount(2), loop(4).
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

from codegen_mcp.sandbox import mounts
from codegen_mcp.sandbox.loop_device import use_direct_io

UNMOUNT_WITHIN_S = 2.0
_FLAGS = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOATIME
_DATA = "noinit_itable,errors=remount-ro,nodelalloc"
"""The image is zeros where nothing was written: clearing inode tables would only occupy disk.
Without delayed allocation a full disk is told by the write itself, and a rename over a file, which
must not lose the old one in a crash, has nothing to flush (ext4(5), auto_da_alloc)."""


def mount(device: Path, root: Path) -> None:
    """Mount an image that is on disk."""
    mounts.mount(str(device), root, "ext4", _FLAGS, _DATA)


def mount_unsettled(device: int, root: Path) -> None:
    """Mount an image that is not on disk yet.

    Direct I/O and write barriers (ext4(5)) would wait for that, so ``LoopVolume.settle`` turns
    them on: until then a crash of the host may take the volume.
    """
    path = os.readlink(f"/proc/self/fd/{device}")
    mounts.mount(path, root, "ext4", _FLAGS, f"{_DATA},barrier=0")


def use_barriers(root: int) -> None:
    """Let a mounted image obey barriers; closes ``root``, which is open there (O_PATH)."""
    try:
        target = Path(f"/proc/self/fd/{root}")  # whatever its name is by now
        mounts.mount("none", target, "ext4", mounts.MS_REMOUNT | _FLAGS, f"{_DATA},barrier=1")
    finally:
        os.close(root)


def write_out(device: int) -> None:
    """Wait until the image of an open device is on disk, go over to direct I/O, close it."""
    try:
        with suppress(OSError):  # it goes on without
            use_direct_io(device)
    finally:
        os.close(device)


def unmount(root: Path) -> None:
    """Unmount; what is still busy after a while goes with its last user."""
    deadline = time.monotonic() + UNMOUNT_WITHIN_S
    while True:
        try:
            mounts.unmount(root)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() >= deadline:
                mounts.unmount(root, mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)
                return
            time.sleep(0.005)
        else:
            return
