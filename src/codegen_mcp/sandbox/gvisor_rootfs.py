"""The root directory that gVisor sandboxes share: empty places to mount on, and a small /etc.

Made once for each set of mount points, read-only for every session, below the state directory.
runsc mounts on what is there: a session's user could make no directory in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from codegen_mcp.sandbox import base
from codegen_mcp.sandbox.bubblewrap_args import ETC, ETC_FROM_HOST
from codegen_mcp.sandbox.volumes.layout import PARTS

_PLACES = (
    *("/usr", "/etc", "/proc", "/sys", "/dev", "/dev/shm", "/tmp", "/var", "/run/codegen"),
    *(f"/{part}" for part in PARTS),
    *(base.GUEST, base.TEMPLATE),
)
_LINKS = ("bin", "sbin", "lib", "lib64", "lib32")


def make_rootfs(parent: Path, directories: Iterable[Path | str]) -> Path:
    """Return the root with these mount points and all the usual ones, made if missing; blocks.

    Args:
        parent: Where roots lie; made, open to everybody.
        directories: Further mount points, absolute.
    """
    places = sorted({*_PLACES, *map(str, directories)})
    digest = hashlib.sha256("\0".join(places).encode()).hexdigest()[:16]
    rootfs = parent / digest
    if rootfs.is_dir():
        return rootfs
    parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.chmod(parent, 0o755)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    try:
        os.chmod(staging, 0o755)
        _fill(staging, places)
        os.rename(staging, rootfs)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return rootfs


def system_links() -> Sequence[tuple[str, str]]:
    """(name, target) of the directories below / that are links into /usr on this host."""
    return [(name, os.readlink(f"/{name}")) for name in _LINKS if os.path.islink(f"/{name}")]


def system_directories() -> Sequence[str]:
    """Those that are directories of their own, /usr first."""
    own = [f"/{name}" for name in _LINKS if os.path.isdir(f"/{name}")]
    return ["/usr", *(path for path in own if not os.path.islink(path))]


def _fill(root: Path, places: Sequence[str]) -> None:
    for place in (*places, *system_directories()):
        _make(root / place.lstrip("/"))
    for name, target in system_links():
        (root / name).symlink_to(target)
    (root / "var" / "tmp").symlink_to("../tmp")
    for source in (*map(Path, ETC_FROM_HOST), *sorted(Path("/etc").glob("python3*"))):
        _copy(source, root / str(source).lstrip("/"))
    for name, text in ETC.items():
        path = root / "etc" / name
        path.write_text(text)
        path.chmod(0o644)


def _make(path: Path) -> None:
    """Make a directory and those above it, open to everybody whatever the umask."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir()
        one.chmod(0o755)


def _copy(source: Path, target: Path) -> None:
    """Copy a public file or tree; what is not there, or cannot be read, is left out."""
    with suppress(OSError, shutil.Error):
        if source.is_dir():
            _make(target.parent)
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        elif source.exists():
            _make(target.parent)
            shutil.copy(source, target)
