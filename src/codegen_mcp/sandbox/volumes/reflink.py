"""Project volumes whose clones share blocks with their source, copied on write.

For XFS with ``reflink=1`` (its default) and ``prjquota``: a clone of any size takes no room until
one of the two is written to, and each is charged in full. Source: ioctl_ficlonerange(2).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from codegen_mcp.sandbox.volumes import project
from codegen_mcp.sandbox.volumes.file_copy import share
from codegen_mcp.sandbox.volumes.project import ProjectDriver
from codegen_mcp.sandbox.volumes.space import VolumeConfig
from codegen_mcp.sandbox.volumes.threads import to_end

FIX = "run the worker as root with its state directory on XFS (reflink=1), mounted with prjquota"


class ReflinkDriver(ProjectDriver):
    """Project volumes where files can share blocks (``tree_copy`` does so wherever it can)."""

    @property
    def name(self) -> str:
        """``reflink``."""
        return "reflink"


async def probe(config: VolumeConfig) -> str:
    """Share a block, and then as for a project volume; the reason why not, or nothing."""
    if not await to_end(lambda: _can_share(config.state_directory)):
        return "the state directory's file system cannot share blocks between files"
    return await project.probe(config)


def _can_share(directory: Path) -> bool:
    with (
        tempfile.TemporaryFile(dir=directory) as source,
        tempfile.TemporaryFile(dir=directory) as target,
    ):
        os.write(source.fileno(), b"x" * 4096)
        try:
            return share(source.fileno(), target.fileno())
        except OSError:
            return False
