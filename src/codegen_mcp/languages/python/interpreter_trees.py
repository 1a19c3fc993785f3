"""Which directories an interpreter needs, and whether a session's user can reach them.

A sandbox shows /usr and the system's libraries anyway. Anything else an interpreter needs is
mounted at its own path, as a whole: so a prefix that holds more than an interpreter (a home, a
top-level directory) is refused rather than shown to hostile code.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

from codegen_mcp.languages.python.interpreter_probe import Facts, NotUsable
from codegen_mcp.sandbox import mounts
from codegen_mcp.sandbox.base import VENV, WORKSPACE, HostIdentity

SYSTEM = tuple(Path(one) for one in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32"))
"""What every sandbox shows."""
_TAKEN = tuple(Path(one) for one in (WORKSPACE, VENV, "/run/codegen", "/proc", "/dev", "/etc"))
"""Where a sandbox has something of its own."""

_MS_BIND = 0x1000
_MS_REMOUNT = 0x20


def needed_trees(facts: Facts) -> tuple[Path, ...]:
    """Return the outermost directories outside the system's that it needs.

    Raises:
        NotUsable: One of them must not be shown, or cannot be mounted at its path.
    """
    wanted = {facts.executable.parent, *facts.directories}
    outside = sorted(one for one in wanted if not _is_below(one, SYSTEM))
    trees: list[Path] = []
    for one in outside:
        if not _is_below(one, trees):
            _check_narrow(one)
            trees.append(one)
    return tuple(trees)


def _check_narrow(tree: Path) -> None:
    if len(tree.parts) < 3:
        raise NotUsable(
            f"it needs all of {str(tree)!r}, which sessions would see; "
            "install it below a directory of its own"
        )
    homes = {Path(os.path.normpath(entry.pw_dir)) for entry in pwd.getpwall()}
    homes.add(Path(os.path.normpath(Path.home())))
    if any(home.is_relative_to(tree) for home in homes):
        raise NotUsable(
            f"it needs all of {str(tree)!r}, and somebody's home is in there; "
            "install it below a directory of its own"
        )
    for taken in _TAKEN:
        if tree.is_relative_to(taken) or taken.is_relative_to(tree):
            raise NotUsable(f"it lies in {str(taken)!r}, where a sandbox has something of its own")


def first_closed(path: Path, identity: HostIdentity) -> Path | None:
    """Return the first directory above a path that the user cannot enter, None if there is none."""
    for directory in reversed(path.parents):
        if not _may(directory, identity, stat.S_IXOTH):
            return directory
    return None


def check_contents(facts: Facts, trees: Iterable[Path], identity: HostIdentity) -> None:
    """Check that the user may read what an interpreter starts from.

    Raises:
        NotUsable: Names what is closed to it.
    """
    both = stat.S_IROTH | stat.S_IXOTH
    for directory in (*trees, *facts.standard_library):
        if directory.is_dir() and not _may(directory, identity, both):
            raise NotUsable(
                f"{str(directory)!r} is closed to sessions; try: chmod -R o+rX {directory}"
            )
    library = facts.standard_library[0]
    for file in (facts.executable, library / "os.py", library / "encodings" / "__init__.py"):
        needed = both if file == facts.executable else stat.S_IROTH
        if file.exists() and not _may(file, identity, needed):
            raise NotUsable(f"{str(file)!r} is closed to sessions; try: chmod -R o+rX {library}")


def bind_read_only(tree: Path, directory: Path) -> Path:
    """Mount a tree read-only where its name cannot be closed, and return that place.

    Args:
        tree: What to mount.
        directory: Parent of the new mount; made if missing, only to be passed through.

    Raises:
        NotUsable: The kernel refuses.
    """
    directory.mkdir(parents=True, exist_ok=True)
    os.chmod(directory, 0o711)
    target = directory / hashlib.sha256(os.fsencode(tree)).hexdigest()[:16]
    if is_bound(tree, target):
        return target
    try:
        unbind(target)
        target.mkdir(exist_ok=True)
        mounts.mount(str(tree), target, "", _MS_BIND)
        mounts.mount(
            str(tree),
            target,
            "",
            _MS_BIND | _MS_REMOUNT | mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV,
        )
    except OSError as error:
        unbind(target)
        raise NotUsable(
            f"sessions cannot reach {str(tree)!r}, and it cannot be mounted elsewhere "
            f"({error.strerror}); try: chmod o+x on the directories above it"
        ) from None
    return target


def is_bound(tree: Path, target: Path) -> bool:
    """Whether the tree as it is now is mounted, read-only, at the target."""
    top = next((one for one in mounts.mounts_below(target) if one.mount_point == target), None)
    if top is None or "ro" not in top.options:
        return False
    here, there = os.stat(tree), os.stat(target)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def unbind(target: Path) -> None:
    """Unmount whatever is mounted at the target; running sandboxes keep their view of it."""
    for entry in mounts.mounts_below(target):
        mounts.unmount(entry.mount_point, mounts.UMOUNT_NOFOLLOW | mounts.MNT_DETACH)


def _is_below(path: Path, parents: Iterable[Path]) -> bool:
    return any(path.is_relative_to(parent) for parent in parents)


def _may(path: Path, identity: HostIdentity, other_bits: int) -> bool:
    """Check permission bits as the kernel would for a user without further groups."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    bits = other_bits
    if status.st_uid == identity.uid:
        bits = other_bits << 6
    elif status.st_gid == identity.gid:
        bits = other_bits << 3
    return status.st_mode & bits == bits
