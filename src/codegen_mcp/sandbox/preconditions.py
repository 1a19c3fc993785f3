"""What must hold before anything is launched."""

from __future__ import annotations

import os
import stat

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox.base import HostIdentity, SandboxSpec


def check_identity(identity: HostIdentity | None) -> None:
    """Refuse to run anything as host uid 0.

    Raises:
        SandboxUnavailable: The user would be root, or another than the worker can become.
    """
    if os.geteuid() == 0:
        if identity is None or identity.uid <= 0 or identity.gid <= 0:
            raise SandboxUnavailable(
                f"a worker that is root never runs a sandbox as itself (identity {identity!r}); "
                "lease a uid from UID_RANGE"
            )
    elif identity is not None and identity != HostIdentity(uid=os.geteuid(), gid=os.getegid()):
        raise SandboxUnavailable(
            f"a worker that is not root cannot become {identity!r}; leave the identity out"
        )


def check_directories(spec: SandboxSpec) -> None:
    """Refuse a volume whose two directories are not directories (a planted link, say).

    Raises:
        SandboxUnavailable: One of them is missing or something else.
    """
    for name in ("workspace", "venv"):
        path = spec.volume.root / name
        try:
            mode = os.lstat(path).st_mode
        except OSError as error:
            raise SandboxUnavailable(f"volume has no {name!r}: {error.strerror}") from error
        if not stat.S_ISDIR(mode):
            raise SandboxUnavailable(f"{name!r} of the volume is not a directory")
