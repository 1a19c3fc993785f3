"""Volumes in memory alone: fast, hard in bytes and files, and counted as memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from codegen_mcp.core.errors import Full
from codegen_mcp.core.limits import MIB
from codegen_mcp.sandbox import mounts
from codegen_mcp.sandbox.volumes.layout import ROOT
from codegen_mcp.sandbox.volumes.loop_mount import unmount
from codegen_mcp.sandbox.volumes.memory import (
    BYTES_PER_INODE,
    FLAGS,
    KEPT,
    SLACK,
    MemoryDriver,
    copy_parts,
)
from codegen_mcp.sandbox.volumes.space import VolumeConfig
from codegen_mcp.sandbox.volumes.trees import remove_tree


class TmpfsDriver(MemoryDriver):
    """Makes them; what is kept on disk is loaded when one is adopted."""

    @property
    def name(self) -> str:
        """``tmpfs``."""
        return "tmpfs"

    def put_up(self, directory: Path, size_bytes: int, kept_bytes: int) -> int:
        """Mount, load what is kept, and take that off the disk."""
        mount_tmpfs(directory / ROOT, size_bytes)
        copy_parts(directory / KEPT, directory / ROOT)
        remove_tree(directory / KEPT)
        return 0

    def take_down(self, directory: Path) -> None:
        """Unmount."""
        unmount(directory / ROOT)


def mount_tmpfs(target: Path, size_bytes: int) -> None:
    """Mount one that holds so much, and as many files as a loop volume of that size."""
    inodes = max(size_bytes // BYTES_PER_INODE, 64)
    data = f"size={size_bytes + SLACK},nr_inodes={inodes},mode=0711"
    mounts.mount("codegen", target, "tmpfs", FLAGS, data)


async def probe(config: VolumeConfig) -> str:
    """Make a small one; the reason why not, or nothing."""
    return await try_driver(TmpfsDriver, config)


async def try_driver(kind: type[MemoryDriver], config: VolumeConfig) -> str:
    """Make a small volume of a kind and take it down; the reason why not, or nothing."""
    if os.geteuid() != 0:
        return "mounting needs root"
    with tempfile.TemporaryDirectory(prefix="probe-", dir=config.state_directory) as name:
        driver = kind(VolumeConfig(state_directory=Path(name), reserve_bytes=0))
        try:
            volume = await driver.create(Path(name), 1 * MIB, None)
        except (OSError, Full) as error:
            return str(error)
        volume.abandon()
        await volume.detach()
    return ""
