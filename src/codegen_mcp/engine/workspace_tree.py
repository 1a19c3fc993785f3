"""A held workspace directory, and how names below it are opened."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from codegen_mcp.core.errors import LimitExceeded, PathEscape, WrongState
from codegen_mcp.core.paths import Parts, join_path, show_path
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.openat2 import DIRECTORY, open_beneath
from codegen_mcp.sandbox.volumes.base import VolumeUsage

INLINE_BYTES = 1024 * 1024
"""Work up to this is done in the event loop; a hand-over to a thread costs more than it."""
LISTABLE = os.O_RDONLY | os.O_DIRECTORY
_MAX_LINKS = 40


@dataclass(slots=True)
class Tree:
    """The root descriptor stays the same directory whatever its path is renamed to."""

    fd: int
    identity: HostIdentity | None
    max_file_bytes: int | None = None
    usage: Callable[[], VolumeUsage] | None = None
    hidden: set[bytes] = field(default_factory=set)
    """Names of our temporary files that exist at this moment."""
    nameless: bool = True
    """Whether the file system has O_TMPFILE; found out at the first write."""

    @property
    def owner_uid(self) -> int:
        """Who owns what the session makes."""
        return self.identity.uid if self.identity is not None else os.geteuid()

    def give(self, fd: int) -> None:
        """Make the session the owner of an open file or directory of ours."""
        if self.identity is not None and self.identity.uid != os.geteuid():
            os.fchown(fd, self.identity.uid, self.identity.gid)

    def check_room(self, size: int, more: int, path: bytes) -> None:
        """Refuse bytes that the limits do not allow; the kernel's own limits come on top.

        Raises:
            LimitExceeded: Of the longest file, or of a volume that only the worker watches.
        """
        if self.max_file_bytes is not None and size + more > self.max_file_bytes:
            raise LimitExceeded(
                f"{show_path(path)} would be longer than the {self.max_file_bytes} bytes that a "
                "file of this session may have; write several files, or raise the limit"
            )
        if self.usage is not None:
            used = self.usage()
            if used.full or used.used_bytes + more > used.size_bytes:
                raise LimitExceeded(
                    f"the session's disk ({used.size_bytes} bytes) has no room for "
                    f"{show_path(path)}; delete files, or use a session with a larger disk limit"
                )


@dataclass(slots=True)
class Place:
    """A name in an open directory: where something is, or would be made."""

    dir_fd: int
    name: bytes
    found: os.stat_result | None
    """Not followed; None where there is nothing yet."""
    owned: bool

    def close(self) -> None:
        """Let the directory go (not the root)."""
        if self.owned:
            self.owned = False
            os.close(self.dir_fd)


def open_parent(tree: Tree, parts: Parts) -> tuple[int, bool]:
    """Open the directory that holds the last name; (descriptor, whether to close it)."""
    if len(parts) == 1:
        return tree.fd, False
    return open_beneath(tree.fd, b"/".join(parts[:-1]), DIRECTORY), True


def locate(tree: Tree, parts: Parts) -> Place:
    """Find the last name of ``parts`` without following it."""
    dir_fd, owned = open_parent(tree, parts)
    return _place(dir_fd, parts[-1], owned)


def locate_followed(tree: Tree, parts: Parts) -> Place:
    """Find what ``parts`` means to a writer: a final link is followed as long as it stays inside.

    Raises:
        PathEscape: A link leads out.
        WrongState: A link leads to a directory.
        OSError: As of open(2).
    """
    place = locate(tree, parts)
    parent = b"/".join(parts[:-1]) or b"."
    for _ in range(_MAX_LINKS):
        if place.found is None or not stat.S_ISLNK(place.found.st_mode):
            return place
        try:
            link = os.readlink(place.name, dir_fd=place.dir_fd)
        finally:
            place.close()
        if link.startswith(b"/"):
            raise PathEscape(
                f"{show_path(join_path(parts))} is a link to the absolute path {show_path(link)}; "
                "write to the real path inside the workspace"
            )
        # The kernel, not we, resolves '..' and links in the directory part of the link's text.
        directory, _, name = link.rpartition(b"/")
        if name in (b"", b".", b".."):
            raise WrongState(
                f"{show_path(join_path(parts))} is a link to a directory; a file is needed"
            )
        parent = parent + b"/" + directory if directory else parent
        place = _place(open_beneath(tree.fd, parent, DIRECTORY), name, True)
    place.close()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def open_regular(tree: Tree, parts: Parts) -> tuple[int, os.stat_result]:
    """Open a regular file for reading; nothing else is opened even for a moment.

    Opening a FIFO would let go of a writer that waits in it, opening a device may do anything:
    so the file is first held by O_PATH, looked at, and then opened as the same inode.

    Raises:
        WrongState: A directory, FIFO, socket or device.
        PathEscape: A hard link to a stranger's file.
    """
    held = open_beneath(tree.fd, join_path(parts), os.O_PATH)
    try:
        found = os.fstat(held)
        check_regular(tree, parts, found)
        # O_NONBLOCK: a lease that the session holds on the file answers EAGAIN, never a wait.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(b"/proc/self/fd/%d" % held, flags), found
    finally:
        os.close(held)


def check_regular(tree: Tree, parts: Parts, found: os.stat_result) -> None:
    """Accept only a regular file of the session's own."""
    if not stat.S_ISREG(found.st_mode):
        kind = kind_of(found.st_mode)
        raise WrongState(
            f"{show_path(join_path(parts))} is a {kind}, not a regular file; only those can be "
            "read or written"
        )
    if found.st_nlink > 1 and found.st_uid != tree.owner_uid:
        raise PathEscape(
            f"{show_path(join_path(parts))} is a hard link to a file that is not the session's"
        )


def kind_of(mode: int) -> str:
    """``file``, ``directory``, ``symlink``, ``fifo``, ``socket`` or ``device``."""
    return _KINDS.get(stat.S_IFMT(mode), "device")


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def _place(dir_fd: int, name: bytes, owned: bool) -> Place:
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        found = None
    except BaseException:
        if owned:
            os.close(dir_fd)
        raise
    return Place(dir_fd, name, found, owned)
