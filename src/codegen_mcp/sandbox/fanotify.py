"""fanotify(7) for whole file systems: who touched what, by directory handle and name.

Needs CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH in the first user namespace, and Linux 5.9 or newer.
Sources: fanotify_init(2), fanotify_mark(2), open_by_handle_at(2), linux/fanotify.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
Q_OVERFLOW = 0x4000
ONDIR = 0x4000_0000

_CLOEXEC, _NONBLOCK, _UNLIMITED_QUEUE = 0x1, 0x2, 0x10
_REPORT_FID, _REPORT_DFID_NAME = 0x200, 0xC00
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_INFO_FID, _INFO_DFID_NAME = 1, 2
_VERSION = 3
_METADATA = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBH8sIi")
_HANDLE_AT = 12
"""Offset of the file handle in an information record: after its header and file system id."""
_MAX_HANDLE_BYTES = 128
_READ_BYTES = 256 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One event; several of the same object may be one, with their masks together."""

    mask: int
    directory: bytes
    """File handle of the directory, as ``open_handle`` takes it; empty where there is none."""
    name: bytes
    """In that directory; ``.`` is the directory itself."""
    inode: bytes
    """File handle of the object itself; only of events on files (not on names)."""


def open_listener() -> int:
    """Open a group that reports handles; its queue has no end, so that it must be read.

    Raises:
        OSError: EPERM, or ENOSYS and EINVAL on kernels without it.
    """
    flags = _CLOEXEC | _NONBLOCK | _UNLIMITED_QUEUE | _REPORT_FID | _REPORT_DFID_NAME
    return _checked(_libc.fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(os.O_RDONLY)))


def watch_filesystem(listener: int, mask: int, directory: int) -> None:
    """Report these events of the whole file system that an open directory is on.

    Raises:
        OSError: ENODEV, EOPNOTSUPP, EXDEV where it has no file handles (overlayfs, for example).
    """
    flags = ctypes.c_uint(_MARK_ADD | _MARK_FILESYSTEM)
    _checked(_libc.fanotify_mark(listener, flags, ctypes.c_uint64(mask), directory, b"."))


def read_events(listener: int) -> Iterator[Event]:
    """Yield what is queued until nothing is."""
    while True:
        try:
            data = os.read(listener, _READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            length, version, _, start, mask, _, _ = _METADATA.unpack_from(data, at)
            if version != _VERSION:
                raise OSError(f"fanotify speaks version {version}; {_VERSION} is known")
            yield _parse(mask, data, at + start, at + length)
            at += length


def open_handle(mount_fd: int, handle: bytes) -> int:
    """Open (O_PATH) what a handle means, wherever it is now.

    Args:
        mount_fd: Anything open on that mount, not O_PATH.
        handle: From an event.

    Raises:
        OSError: ESTALE when it is gone, EPERM without CAP_DAC_READ_SEARCH.
    """
    buffer = ctypes.create_string_buffer(handle, len(handle))
    return _checked(_libc.open_by_handle_at(mount_fd, buffer, os.O_PATH | os.O_CLOEXEC))


def handle_of(fd: int) -> bytes:
    """Return the handle of something open, as events have it (name_to_handle_at(2)).

    Raises:
        OSError: EOPNOTSUPP where the file system has none.
    """
    head = struct.pack("=Ii", _MAX_HANDLE_BYTES, 0)
    buffer = ctypes.create_string_buffer(head, len(head) + _MAX_HANDLE_BYTES)
    mount_id = ctypes.c_int()
    empty_path = 0x1000
    _checked(_libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount_id), empty_path))
    (length,) = struct.unpack_from("=I", buffer.raw)
    return buffer.raw[: len(head) + length]


def _parse(mask: int, data: bytes, at: int, end: int) -> Event:
    directory = name = inode = b""
    while at < end:
        kind, _, length, _, handle_bytes, _ = _INFO.unpack_from(data, at)
        handle_end = at + _INFO.size + handle_bytes
        if kind == _INFO_DFID_NAME:
            directory = data[at + _HANDLE_AT : handle_end]
            name = data[handle_end : data.index(b"\0", handle_end)]
        elif kind == _INFO_FID:
            inode = data[at + _HANDLE_AT : handle_end]
        at += length
    return Event(mask, directory, name, inode)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
