"""The image of a mounted volume, copied as of one moment.

Nothing is frozen: a file system that is frozen when its worker is killed stays so for ever. What
is dirty is written out (syncfs(2)); then the image is copied; that nothing was written meanwhile
is known from the block device's counters (kernel block/stat.rst), else it is copied again. What is
copied then is what a crash would leave right after a sync: whole, with its journal.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from codegen_mcp.sandbox.loop_device import attached
from codegen_mcp.sandbox.volumes.file_copy import (
    PIECE,
    Range,
    check_going,
    share,
    written_ranges,
)

ATTEMPTS = 2
READERS = 4
_ALIGNMENT = 4096
"""Of direct I/O, on any device of today."""
_libc = ctypes.CDLL(None, use_errno=True)

Written = tuple[int, ...]
"""Sectors that a device has finished to write, and to discard."""


def clone_image(
    root: int, source: Path, target: int, *, shared: bool, stop: threading.Event
) -> bool:
    """Fill ``target`` with the image that is mounted at the open directory ``root``.

    False when it was written to meanwhile, each time again: the target is of no use then.

    Args:
        root: Of the mounted file system; nobody should write to it meanwhile.
        source: Its image.
        target: A new file, open for writing, as long as the image and reserved as it should be.
        shared: Share blocks where the host's file system can. They are not reserved then.
        stop: Set it to end this early.

    Raises:
        Stopped: ``stop`` was set.
        OSError: Something cannot be read or written.
    """
    for _ in range(ATTEMPTS):
        _sync(root)
        before = written(root)
        _copy(source, target, shared, stop)
        _sync(root)
        if before == written(root):
            return True
    return False


def fill_reserved(root: int, source: Path, image: Path, stop: threading.Event) -> int:
    """Copy into a new image; return its device, open, or -1 as ``clone_image``.

    Through the device: attaching it afterwards would wait until all of the copy is on disk. Past
    its cache, for whoever looks at a new device (udev) may have read blocks before they came.
    """
    with attached(image, direct=False) as device:
        target = os.open(device, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            if not clone_image(root, source, target, shared=False, stop=stop):
                return -1
        finally:
            os.close(target)
        return os.open(device, os.O_RDONLY | os.O_CLOEXEC)


def fill_shared(root: int, source: Path, target: int, image: Path, stop: threading.Event) -> int:
    """Share the blocks of the source with a new image, which is ``target``."""
    if not clone_image(root, source, target, shared=True, stop=stop):
        return -1
    with attached(image, direct=False) as device:
        return os.open(device, os.O_RDONLY | os.O_CLOEXEC)


def can_clone(root: Path) -> bool:
    """Whether the kernel tells how much was written (there is a sysfs here)."""
    try:
        descriptor = os.open(root, os.O_PATH | os.O_CLOEXEC)
        try:
            written(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True


def written(root: int) -> Written:
    """Return how much was ever written to the device below an open directory.

    Raises:
        OSError: The kernel does not tell (no sysfs here).
    """
    device = os.fstat(root).st_dev
    path = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"
    with open(path, "rb") as file:
        fields = [int(field) for field in file.read().split()]
    # Not the number of writes, of which a flush is one. Older kernels count no discards.
    return tuple(fields[place] for place in (6, 13) if place < len(fields))


def _sync(root: int) -> None:
    if _libc.syncfs(root) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _copy(source: Path, target: int, shared: bool, stop: threading.Event) -> None:
    image = _open(source)
    try:
        if shared and share(image, target):
            return
        pieces = _pieces(written_ranges(image, os.fstat(image).st_size))
        # Several at once, for a disk that answers one request at a time is not a busy one.
        with ThreadPoolExecutor(READERS, "clone") as readers:
            list(readers.map(partial(_copy_piece, image, target, stop), pieces))
    finally:
        os.close(image)


def _open(source: Path) -> int:
    """Past the page cache where that can be: the loop device writes there, too."""
    try:
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _pieces(ranges: list[Range]) -> list[Range]:
    """Cut into pieces, which begin and end where direct I/O can."""
    return [
        (offset, min(offset + PIECE, -(-end // _ALIGNMENT) * _ALIGNMENT))
        for start, end in ranges
        for offset in range(start // _ALIGNMENT * _ALIGNMENT, end, PIECE)
    ]


def _copy_piece(source: int, target: int, stop: threading.Event, piece: Range) -> None:
    # Not copy_file_range(2), which shares blocks where it can: they are not reserved.
    check_going(stop)
    start, end = piece
    buffer = memoryview(mmap.mmap(-1, end - start))  # aligned
    if os.preadv(source, [buffer], start) != len(buffer):
        raise OSError(errno.EIO, "the image was cut short")
    done = 0
    while done < len(buffer):
        done += os.pwrite(target, buffer[done:], start + done)
