"""inotify(7): events of single directories, for any user.

Sources: inotify_init1(2), inotify_add_watch(2), linux/inotify.h.
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
IGNORED = 0x8000
ONLYDIR = 0x0100_0000
ISDIR = 0x4000_0000

_EVENT = struct.Struct("=iIII")
_READ_BYTES = 256 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One event."""

    watch: int
    """-1 of an overflow."""
    mask: int
    name: bytes
    """In the watched directory; empty is the directory itself."""


def open_listener() -> int:
    """Open an instance.

    Raises:
        OSError: EMFILE when the user has too many (fs.inotify.max_user_instances).
    """
    return _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))


def add_watch(listener: int, directory: int, mask: int) -> int:
    """Watch an open directory (O_PATH is enough); the same number for the same directory.

    Raises:
        OSError: EACCES when it may not be read, ENOSPC when the user has too many watches
            (fs.inotify.max_user_watches).
    """
    path = b"/proc/self/fd/%d" % directory
    return _checked(_libc.inotify_add_watch(listener, path, ctypes.c_uint32(mask | ONLYDIR)))


def read_events(listener: int) -> Iterator[Event]:
    """Yield what is queued until nothing is."""
    while True:
        try:
            data = os.read(listener, _READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            yield Event(watch, mask, data[at : at + length].rstrip(b"\0"))
            at += length


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
