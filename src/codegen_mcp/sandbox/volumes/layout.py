"""Names inside a slot directory and a volume, and who owns what."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.volumes.trees import chown_tree

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


def give(root: Path, identity: HostIdentity | None) -> None:
    """Let the identity own all files, where another had them."""
    for part in PARTS:
        path = root / part
        if identity is not None and path.lstat().st_uid != identity.uid:
            with suppress(OSError):  # there is none, or there can be none
                # What the former owner let others do: an access list names users by number.
                os.removexattr(path, "system.posix_acl_access", follow_symlinks=False)
            chown_tree(path, identity.uid, identity.gid)


def check(root: Path) -> None:
    """Check the parts of an adopted volume.

    Raises:
        Corrupt: One is missing.
    """
    for part in PARTS:
        path = root / part
        if path.is_symlink() or not path.is_dir():
            raise Corrupt(f"{str(path)!r} is missing: the volume cannot be adopted")
