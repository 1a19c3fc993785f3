"""openat2(2) and renameat2(2): open what lies below a directory, whatever links are swapped.

The kernel resolves the whole path in one call and refuses one that leaves the directory at any
moment of the walk; nothing is checked first and opened later. Relative links that stay below are
followed. Where openat2 is missing (Linux before 5.6, or a seccomp filter that does not know it),
the path is walked name by name with O_NOFOLLOW, which is as tight but refuses every link.

https://man7.org/linux/man-pages/man2/openat2.2.html
https://man7.org/linux/man-pages/man2/rename.2.html
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import struct

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

FOLLOW_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
"""Links are followed as long as they stay below the directory."""
NO_LINKS = FOLLOW_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
"""No link and no mount point on the way: for walks over a tree."""

DIRECTORY = os.O_PATH | os.O_DIRECTORY

_OPENAT2 = 437  # the same on every architecture
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}.get(os.uname().machine)
_RENAME_NOREPLACE = 1
_ATTEMPTS = 256
"""EAGAIN means a rename elsewhere during the walk, or a lease that somebody holds on the file."""

_libc = ctypes.CDLL(None, use_errno=True)
_openat2_call = _libc["syscall"]
_openat2_call.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_size_t,
)
_openat2_call.restype = ctypes.c_long
_rename_call = _libc["syscall"]
_rename_call.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_rename_call.restype = ctypes.c_long


def open_beneath(
    dir_fd: int, path: bytes, flags: int, mode: int = 0, *, resolve: int = FOLLOW_BENEATH
) -> int:
    """Open ``path`` below ``dir_fd``; never blocks on a FIFO, never takes a terminal.

    Args:
        dir_fd: A directory, O_PATH is enough.
        path: Relative, without NUL; ``.`` is the directory itself.
        flags: As for open(2); O_CLOEXEC, O_NONBLOCK and O_NOCTTY are added.
        mode: Only with O_CREAT.
        resolve: ``FOLLOW_BENEATH`` or ``NO_LINKS``.

    Raises:
        OSError: EXDEV where the path leaves, ELOOP where a link is refused (magic, loop, or
            NO_LINKS), EAGAIN where the file stays leased, else as open(2).
    """
    if openat2_supported():
        return _openat2(dir_fd, path, flags, mode, resolve)
    return open_by_walking(dir_fd, path, flags, mode)


@functools.cache
def openat2_supported() -> bool:
    """Whether this kernel (and the filter around this process) has openat2."""
    fd = os.open("/", DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(_openat2(fd, b".", DIRECTORY, 0, FOLLOW_BENEATH))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return False
        raise
    finally:
        os.close(fd)
    return True


def open_by_walking(dir_fd: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open without openat2: name by name, every link refused with ELOOP, ``..`` with EXDEV."""
    _refuse_nul(path)
    names = [name for name in path.split(b"/") if name not in (b"", b".")] or [b"."]
    if path.startswith(b"/") or b".." in names:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    current = dir_fd
    try:
        for name in names[:-1]:
            below = _open_one(current, name, DIRECTORY, 0)
            if current != dir_fd:
                os.close(current)
            current = below
        return _open_one(current, names[-1], flags, mode)
    finally:
        if current != dir_fd:
            os.close(current)


def rename_at(
    source_fd: int, source: bytes, target_fd: int, target: bytes, *, replace: bool
) -> None:
    """Rename one name to another; both are plain names in open directories.

    Raises:
        OSError: EEXIST where the target is there and ``replace`` is false; else as rename(2).
    """
    if replace:
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        return
    _refuse_nul(source + target)
    code = errno.EINVAL
    if _RENAMEAT2 is not None:
        if _rename_call(_RENAMEAT2, source_fd, source, target_fd, target, _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
    if code != errno.EINVAL:
        raise OSError(code, os.strerror(code), source)
    _rename_new(source_fd, source, target_fd, target)


def _rename_new(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    """Rename without replacing where the flag is not known (or a directory goes into itself)."""
    if not stat.S_ISDIR(os.stat(source, dir_fd=source_fd, follow_symlinks=False).st_mode):
        # A hard link never replaces, so this is as safe as the flag.
        os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
        os.unlink(source, dir_fd=source_fd)
        return
    try:
        os.stat(target, dir_fd=target_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)


def _openat2(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    _refuse_nul(path)
    how = _how(flags, mode, resolve)
    for _ in range(_ATTEMPTS):
        fd: int = _openat2_call(_OPENAT2, dir_fd, path, how, 24)
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code), path)


@functools.lru_cache(maxsize=64)
def _how(flags: int, mode: int, resolve: int) -> bytes:
    return struct.pack("=QQQ", _complete(flags), mode, resolve)


def _complete(flags: int) -> int:
    if flags & os.O_PATH:  # openat2 refuses flags that O_PATH would ignore
        return flags | os.O_CLOEXEC
    return flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def _open_one(dir_fd: int, name: bytes, flags: int, mode: int) -> int:
    try:
        fd = os.open(name, _complete(flags) | os.O_NOFOLLOW, mode, dir_fd=dir_fd)
    except NotADirectoryError:
        # O_NOFOLLOW with O_DIRECTORY says "not a directory" for a link to one
        if stat.S_ISLNK(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from None
        raise
    if flags & os.O_PATH and not flags & os.O_NOFOLLOW and stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    return fd


def _refuse_nul(path: bytes) -> None:
    if b"\0" in path:
        raise ValueError("a path with a NUL byte reached the kernel's door")
