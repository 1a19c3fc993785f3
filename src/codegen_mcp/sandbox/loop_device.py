"""Loop devices by ioctl.

Source: loop(4), linux/loop.h. The image's descriptor is locked (flock) before it is handed over:
the kernel keeps that very open file, so that the lock says whether a device still has the image,
even after the worker that attached it was killed. Two devices on one image would corrupt it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LOOP_CLR_FD = 0x4C01
LOOP_SET_DIRECT_IO = 0x4C08
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16
LOOP_MAJOR = 7
_INFO = struct.Struct("5Q4I64s64s32s2Q")
_CONFIG = struct.Struct(f"II{_INFO.size}s64x")
_ATTEMPTS = 64


@contextmanager
def attached(
    image: Path, *, block_size: int = 4096, wait_s: float = 3.0, direct: bool = True
) -> Iterator[Path]:
    """Attach an image while the block runs; a mount made inside keeps the device after it.

    Direct I/O avoids caching everything twice; where the file system of the image cannot do it the
    kernel goes on without. It waits until the image's dirty pages are on disk.

    Args:
        image: The file.
        block_size: The device's logical block size.
        wait_s: How long to wait for another device to let go of the image.
        direct: From the start; else ``use_direct_io`` may follow.

    Raises:
        BlockingIOError: A device still has the image.
        OSError: No loop devices here, or not permitted.
    """
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(backing, wait_s)
        number, device = _configure(backing, block_size, direct)
    finally:
        os.close(backing)
    try:
        yield Path(f"/dev/loop{number}")
    finally:
        os.close(device)


def devices_below(directory: Path) -> list[tuple[int, Path]]:
    """Return (number, backing file) of every device whose image lies or lay below a directory."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            backing = Path(entry.read_text().rstrip("\n").removesuffix(" (deleted)"))
            if backing.is_relative_to(directory):
                found.append((int(entry.parts[3].removeprefix("loop")), backing))
    return sorted(found)


def use_direct_io(device: int) -> None:
    """Let an open device go over to direct I/O, once what is dirty of its image is on disk.

    Raises:
        OSError: The image cannot be written to, or its file system knows no direct I/O.
    """
    os.fsync(device)  # here and not in the ioctl, which holds up all requests
    fcntl.ioctl(device, LOOP_SET_DIRECT_IO, 1)


def detach(number: int) -> None:
    """Let go of the image, at once or with the last user; one that is not attached is fine."""
    device = _open_device(number)
    try:
        fcntl.ioctl(device, LOOP_CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    finally:
        os.close(device)


def _lock(backing: int, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(backing, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            return


def _configure(backing: int, block_size: int, direct: bool) -> tuple[int, int]:
    """Take a free device; another process may be faster, then ask for the next."""
    flags = LO_FLAGS_AUTOCLEAR | (LO_FLAGS_DIRECT_IO if direct else 0)
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    config = _CONFIG.pack(backing, block_size, info)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = _open_device(number)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return number, device
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"no free loop device in {_ATTEMPTS} attempts")


def _open_device(number: int) -> int:
    path = f"/dev/loop{number}"
    if not os.path.exists(path):  # a container's static /dev: no devtmpfs makes the node
        with suppress(FileExistsError):
            os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(LOOP_MAJOR, number))
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
