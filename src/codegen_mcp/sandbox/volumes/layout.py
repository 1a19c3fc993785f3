"""Names inside a slot directory and a volume, and who owns what."""

from __future__ import annotations

import os
import subprocess
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


def claim(root: Path, identity: HostIdentity | None) -> None:
    """Check the parts of an adopted volume, and give them to the identity if another had them.

    Raises:
        Corrupt: A part is missing.
    """
    for part in PARTS:
        path = root / part
        if path.is_symlink() or not path.is_dir():
            raise Corrupt(f"{str(path)!r} is missing: the volume cannot be adopted")
        if identity and path.stat().st_uid != identity.uid:
            # chown(1) goes down trees of any depth and never follows a link with these options.
            owner = f"{identity.uid}:{identity.gid}"
            subprocess.run(["chown", "-RPh", owner, "--", str(path)], check=True)
