"""Volumes with a base on disk and what is changed in memory, hard in bytes and files.

The base is what a clone or an adopted session began with: it is read in place, so that only changes
cost memory. A file of the base that is changed or deleted counts twice: it stays in the base, and a
change copies all of it up first. Changing a file of the base that has several names parts them.
Source: kernel filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
from pathlib import Path

from codegen_mcp.sandbox import mounts
from codegen_mcp.sandbox.volumes.layout import ROOT
from codegen_mcp.sandbox.volumes.loop_mount import unmount
from codegen_mcp.sandbox.volumes.memory import FLAGS, KEPT, MemoryDriver
from codegen_mcp.sandbox.volumes.space import VolumeConfig
from codegen_mcp.sandbox.volumes.tmpfs import mount_tmpfs, try_driver
from codegen_mcp.sandbox.volumes.trees import remove_tree

CHANGES = "changes"
"""Directory beside the mount point where the tmpfs is, with what overlayfs needs there."""


class OverlayDriver(MemoryDriver):
    """Makes them; what is kept on disk is the base."""

    @property
    def name(self) -> str:
        """``overlay``."""
        return "overlay"

    def put_up(self, directory: Path, size_bytes: int, kept_bytes: int) -> int:
        """Mount both file systems; what the base has is no room for changes."""
        changes = directory / CHANGES
        changes.mkdir(mode=0o700)
        mount_tmpfs(changes, max(size_bytes - kept_bytes, 0))
        for name in ("upper", "work"):
            (changes / name).mkdir(mode=0o711)
        layers = {
            "lowerdir": directory / KEPT,
            "upperdir": changes / "upper",
            "workdir": changes / "work",
        }
        for path in layers.values():
            if any(special in str(path) for special in ",:\\"):
                raise OSError(errno.EINVAL, "overlayfs cannot name this path", str(path))
        data = ",".join(f"{name}={path}" for name, path in layers.items())
        mounts.mount("codegen", directory / ROOT, "overlay", FLAGS, data)
        return kept_bytes

    def take_down(self, directory: Path) -> None:
        """Unmount both, the upper one first."""
        unmount(directory / ROOT)
        unmount(directory / CHANGES)
        remove_tree(directory / CHANGES)


async def probe(config: VolumeConfig) -> str:
    """Make a small one; the reason why not, or nothing."""
    return await try_driver(OverlayDriver, config)
