"""Opening and reading files of a session that may change under the reader; for threads."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.paths import show_path
from codegen_mcp.sandbox.openat2 import DIRECTORY, NO_LINKS, open_beneath

PIECE_BYTES = 1024 * 1024
_PATH_MAX = 4000
"""Below the kernel's 4096, with room for a name."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
Read = Callable[[int], bytes]
Segments = Sequence[tuple[int, int]]
"""(offset, length) of each stretch of data; holes lie between."""


def open_entry(root_fd: int, path: bytes, flags: int) -> int:
    """Open a name below a volume's root; no link is followed on the way, nor at its end.

    Directories that keep out this process, who owns them, are opened to it for that moment.

    Raises:
        OSError: As open(2); ELOOP for a link.
    """
    try:
        return _open(root_fd, path, flags)
    except PermissionError:
        with _lent(root_fd, path):
            return _open(root_fd, path, flags)


@contextmanager
def _lent(root_fd: int, path: bytes) -> Iterator[None]:
    """Lend read and search permission to every directory on the way that lacks it."""
    lent: list[tuple[int, int]] = []
    try:
        for at in (at for at, byte in enumerate(path) if byte == ord("/")):
            handle = _open(root_fd, path[:at], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            found = os.fstat(handle)
            mode = stat.S_IMODE(found.st_mode)
            if found.st_uid == os.geteuid() and mode & 0o500 != 0o500:
                lent.append((handle, mode))
                lend(handle, mode, 0o500)
            else:
                os.close(handle)
        yield
    finally:
        while lent:
            handle, mode = lent.pop()
            take_back(handle, mode, 0o500)
            os.close(handle)


def lend(handle: int, mode: int, bits: int) -> None:
    """Give permission bits to what is open (O_PATH): through /proc, which follows no link of it."""
    os.chmod(f"/proc/self/fd/{handle}", mode | bits)


def take_back(handle: int, mode: int, bits: int) -> None:
    """Undo ``lend``, unless the session itself has changed the mode meanwhile."""
    if stat.S_IMODE(os.fstat(handle).st_mode) == mode | bits:
        os.chmod(f"/proc/self/fd/{handle}", mode)


def _open(root_fd: int, path: bytes, flags: int) -> int:
    held = -1
    try:
        while len(path) > _PATH_MAX:
            cut = path.rindex(b"/", 0, _PATH_MAX)
            below = open_beneath(
                root_fd if held < 0 else held, path[:cut], DIRECTORY, resolve=NO_LINKS
            )
            if held >= 0:
                os.close(held)
            held, path = below, path[cut + 1 :]
        return open_beneath(root_fd if held < 0 else held, path, flags, resolve=NO_LINKS)
    finally:
        if held >= 0:
            os.close(held)


def _open_in(directory: int, path: bytes) -> int:
    """Open a file by its last name alone; -1 where its mode keeps its owner out."""
    try:
        return os.open(path[path.rindex(b"/") + 1 :], _READ, dir_fd=directory)
    except PermissionError:
        return -1


def _open_for_reading(root_fd: int, path: bytes) -> int:
    """Open a file; one whose mode keeps its owner out is lent the bit for that moment."""
    try:
        return open_entry(root_fd, path, os.O_RDONLY | os.O_NOFOLLOW)
    except PermissionError:
        handle = open_entry(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if found.st_uid != os.geteuid():
            raise WrongState(
                f"file {show_path(path)} cannot be read by the worker; give its owner read "
                "permission (chmod u+r), or delete it, and try again",
                reason="UNREADABLE_FILE",
            )
        mode = stat.S_IMODE(found.st_mode)
        lend(handle, mode, 0o400)
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{handle}", flags)
        finally:
            take_back(handle, mode, 0o400)
    finally:
        os.close(handle)


def open_regular(
    root_fd: int, path: bytes, ino: int, directory: int = -1
) -> tuple[int, os.stat_result]:
    """Open a regular file that was seen with this inode; the caller closes it.

    Args:
        root_fd: The volume's root.
        path: From there.
        ino: Its inode.
        directory: The one that it is in, if it is open.

    Raises:
        FileNotFoundError: It is gone, or something else has its name now.
        WrongState: It may not be read, and is not this process's own.
    """
    try:
        fd = _open_in(directory, path) if directory >= 0 else -1
        if fd < 0:
            fd = _open_for_reading(root_fd, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EXDEV):
            raise FileNotFoundError(error.errno, os.strerror(error.errno), path) from None
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_ino != ino:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    except BaseException:
        os.close(fd)
        raise
    return fd, found


@contextmanager
def regular_file(root_fd: int, path: bytes, ino: int) -> Iterator[tuple[int, os.stat_result]]:
    """Have a file of ``open_regular`` for a while."""
    fd, found = open_regular(root_fd, path, ino)
    try:
        yield fd, found
    finally:
        os.close(fd)


def data_segments(fd: int, found: os.stat_result) -> Segments | None:
    """Return where data lies, if the file has holes worth keeping; None when it has none.

    lseek(2), SEEK_DATA and SEEK_HOLE.
    """
    size = found.st_size
    if size < 4096 or found.st_blocks * 512 + 4096 > size:
        return None
    segments: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        segments.append((start, at - start))
    os.lseek(fd, 0, os.SEEK_SET)
    return None if segments == [(0, size)] else tuple(segments)


def reader(fd: int) -> Read:
    """Read on from the descriptor's place."""
    return lambda count: os.read(fd, count)


def hash_whole(fd: int, size: int) -> tuple[int, bytes]:
    """(bytes read, sha256) of a file from its beginning, at most one byte more than ``size``."""
    digest = hashlib.sha256()
    done = 0
    while done <= size:
        data = os.pread(fd, min(PIECE_BYTES, size + 1 - done), done)
        if not data:
            break
        digest.update(data)
        done += len(data)
    return done, digest.digest()
