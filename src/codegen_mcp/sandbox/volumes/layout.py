"""Names inside a slot directory and a volume, and who owns what."""

from __future__ import annotations

import os
from pathlib import Path

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.sandbox.base import HostIdentity

ROOT = "volume"
"""Directory or mount point below the slot directory."""
PARTS = ("workspace", "venv")
"""Directories of a volume, owned by the session's identity."""


def populate(root: Path, identity: HostIdentity | None) -> None:
    """Make the parts; only their owner may look into them."""
    os.chmod(root, 0o711)
    for part in PARTS:
        os.mkdir(root / part, 0o700)
        if identity:
            os.chown(root / part, identity.uid, identity.gid)


def check(root: Path) -> None:
    """Check the parts of an adopted volume.

    Raises:
        Corrupt: One is missing.
    """
    for part in PARTS:
        path = root / part
        if path.is_symlink() or not path.is_dir():
            raise Corrupt(f"{str(path)!r} is missing: the volume cannot be adopted")
