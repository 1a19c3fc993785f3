"""Directories as the program that refills a sandbox uses them: by descriptor, however deep.

Part of ``refill_guest`` (see there): standard library only, Python 3.8 or later.
"""

from __future__ import annotations

import errno
import os

from codegen_mcp.engine.checkpoints.refill_guest_input import Refused
from codegen_mcp.engine.checkpoints.refill_guest_manifest import ROOTS, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HELD = 8
"""Directories of a deep path that are held open: a session may have but 32 descriptors."""
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Place:
    """The directory that is worked in: a chain of descriptors, of which the deepest are held."""

    def __init__(self, roots: dict[bytes, int]) -> None:
        self.roots = roots
        self.path: bytes | None = None
        self.names: list[bytes] = []
        self.fds: list[int] = []

    def go(self, path: bytes) -> int:
        """Return a descriptor of a directory; it is the present one until the next call."""
        if path == self.path:
            return self.fds[-1]
        self.path = None
        names = path.split(b"/")
        common = 0
        for one, other in zip(names, self.names):  # noqa: B905 - Python 3.8
            if one != other:
                break
            common += 1
        while len(self.names) > common:
            self.names.pop()
            if self.fds:
                os.close(self.fds.pop())
        if not self.fds:
            self.names = names[:1]
            self.fds.append(os.dup(self.roots[names[0]]))
        for name in names[len(self.names) :]:
            self.fds.append(os.open(name, DIRECTORY, dir_fd=self.fds[-1]))
            self.names.append(name)
            if len(self.fds) > HELD:
                os.close(self.fds.pop(0))
        self.path = path
        return self.fds[-1]

    def of(self, path: bytes) -> tuple[int, bytes]:
        """Return a descriptor of the parent, and the last part of the name."""
        parent, _, name = path.rpartition(b"/")
        return self.go(parent), name


def set_time(what: Any, node: Node, parent: int | None = None) -> None:
    """Set both times, of a link its own."""
    try:
        if parent is None:
            os.utime(what, ns=(node.mtime, node.mtime))
        else:
            os.utime(what, ns=(node.mtime, node.mtime), dir_fd=parent, follow_symlinks=False)
    except OverflowError:
        raise Refused("a time is out of range", b"") from None


def listing(directory: int) -> list[tuple[str, bool]]:
    """Return the names in a directory, and whether each is a directory."""
    with os.scandir(directory) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def empty(root: int) -> None:
    """Remove everything in a directory, however deep: what lies deeper is moved up first."""
    os.fchmod(root, 0o700)
    found = listing(root)
    taken = {name for name, _ in found}
    waiting = []
    moved = 0
    for name, is_directory in found:
        if is_directory:
            os.chmod(name, 0o700, dir_fd=root)
            waiting.append(name)
        else:
            os.unlink(name, dir_fd=root)
    while waiting:
        name = waiting.pop()
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
        for inner, is_directory in listing(fd):
            if not is_directory:
                os.unlink(inner, dir_fd=fd)
                continue
            moved += 1
            while f".{moved}" in taken:
                moved += 1
            os.chmod(inner, 0o700, dir_fd=fd)  # it must be writable to get another parent
            os.rename(inner, f".{moved}", src_dir_fd=fd, dst_dir_fd=root)
            waiting.append(f".{moved}")
        os.close(fd)
        os.rmdir(name, dir_fd=root)


def _own_root() -> bool:
    return os.path.isdir("/run/codegen/guest")


def open_roots(arguments: list[str]) -> dict[bytes, int]:
    """Open the first pair of directories that is the expected one.

    Known by their inode, except in gVisor, whose numbers are its own: where the guest is mounted
    the root is a sandbox's, and its directories can be no others.
    """
    expected, paths = arguments[:2], arguments[2:]
    for at in range(0, len(paths) - 1, 2):
        fds: list[int] = []
        for path in paths[at : at + 2]:
            try:
                fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            except OSError:
                break
        found = [os.fstat(fd) for fd in fds]
        same = [f"{one.st_dev}:{one.st_ino}" for one in found] == expected
        if same or (at == 0 and len(found) == 2 and _own_root()):
            return dict(zip(ROOTS, fds))  # noqa: B905 - Python 3.8
        for fd in fds:
            os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "the directories of this session are not there")
