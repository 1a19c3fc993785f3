"""The bytes of one open file into another: shared where the file system can, else copied.

Sources: ioctl_ficlone(2), ioctl_fiemap(2), copy_file_range(2), lseek(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator

from codegen_mcp.core.limits import MIB

FICLONE = 0x40049409
FS_IOC_FIEMAP = 0xC020660B
FIEMAP_FLAG_SYNC = 0x1
FIEMAP_EXTENT_LAST = 0x1
FIEMAP_EXTENT_UNWRITTEN = 0x800
PIECE = 4 * MIB
_HEADER = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQ16xI12x")
_EXTENTS = 512
"""Asked for at once: 28 KiB."""
_CANNOT = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EPERM}
)
"""What the kernel says where files cannot be shared, or not be copied inside of it."""

Range = tuple[int, int]
"""Begin and end, in bytes."""


class Stopped(Exception):
    """The copy was told to stop."""


def check_going(stop: threading.Event) -> None:
    """Raise Stopped once ``stop`` is set."""
    if stop.is_set():
        raise Stopped


def share(source: int, target: int) -> bool:
    """Let ``target`` have the blocks of ``source``, copied on write; False where this cannot be.

    Atomic to writers of the source, whatever its length.
    """
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def written_ranges(descriptor: int, length: int) -> list[Range]:
    """Return what was really written of a file, without what is only reserved.

    SEEK_DATA does not tell the two apart where reserved blocks were read into the page cache.
    """
    try:
        return _merged(_extents(descriptor, length), length)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return list(data_ranges(descriptor, length))


def data_ranges(descriptor: int, length: int) -> Iterator[Range]:
    """Yield what lies between the holes of a file."""
    offset = 0
    while offset < length:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but holes from here on
                return
            raise
        offset = min(os.lseek(descriptor, start, os.SEEK_HOLE), length)
        if start < offset:
            yield start, offset


def copy_range(source: int, target: int, start: int, end: int, stop: threading.Event) -> None:
    """Copy without a detour through this process where the kernel can.

    Raises:
        Stopped: ``stop`` was set.
        OSError: ENOSPC and the like; EIO when the source is shorter than ``end``.
    """
    while start < end:
        check_going(stop)
        try:
            done = os.copy_file_range(source, target, min(end - start, PIECE), start, start)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            done = 0
        if done == 0:  # a kernel that cannot between these two, or a file that ended
            data = os.pread(source, min(end - start, MIB), start)
            if not data:
                raise OSError(errno.EIO, "a file became shorter while it was copied")
            done = os.pwrite(target, data, start)
        start += done


def _extents(descriptor: int, length: int) -> Iterator[Range]:
    offset = 0
    while offset < length:
        buffer = bytearray(_HEADER.size + _EXTENTS * _EXTENT.size)
        _HEADER.pack_into(buffer, 0, offset, length - offset, FIEMAP_FLAG_SYNC, 0, _EXTENTS, 0)
        fcntl.ioctl(descriptor, FS_IOC_FIEMAP, buffer)
        count = _HEADER.unpack_from(buffer)[3]
        if count == 0:
            return
        for number in range(count):
            place = _HEADER.size + number * _EXTENT.size
            start, _, size, flags = _EXTENT.unpack_from(buffer, place)
            if not flags & FIEMAP_EXTENT_UNWRITTEN:
                yield start, start + size
            if flags & FIEMAP_EXTENT_LAST:
                return
            offset = start + size


def _merged(ranges: Iterator[Range], length: int) -> list[Range]:
    merged: list[Range] = []
    for start, end in ranges:
        end = min(end, length)
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged
