"""ext4 images: made once for each size, then copied without their holes.

Sources: mke2fs(8), fallocate(2), lseek(2), kernel filesystems/ext4/super.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.core.limits import MIB

BLOCK = 4096
BYTES_PER_INODE = 16 * 1024
"""An environment with pandas and matplotlib has 10,000 files in 200 MB."""
INODE_SIZE = 256
JOURNAL_MIB = 4
"""The smallest that ext4 accepts with this block size."""
MIN_BYTES = 8 * MIB
KEPT_TEMPLATES = 16
LAYOUT = 1
"""Part of a template's name: raised whenever the options below change."""

_OPTIONS = (
    *("-q", "-F", "-b", str(BLOCK), "-m", "0", "-I", str(INODE_SIZE)),
    *("-i", str(BYTES_PER_INODE), "-J", f"size={JOURNAL_MIB}"),
    # Room to grow and copies of the superblock would be half of what an idle image occupies.
    *("-O", "^resize_inode,sparse_super2"),
    *("-E", "num_backup_sb=1,lazy_itable_init=1,lazy_journal_init=1,nodiscard"),
)
_SUPERBLOCK = 1024
_STATE = _SUPERBLOCK + 0x3A
_LABEL = _SUPERBLOCK + 0x78
_ERROR_FS = 0x2
_PARTIAL = ".partial"
_libc = ctypes.CDLL(None, use_errno=True)


def image_bytes(size_bytes: int) -> int:
    """Length of an image in which ``size_bytes`` of files fit."""
    size = max(size_bytes, MIN_BYTES)
    inodes = size * INODE_SIZE // BYTES_PER_INODE
    kept = min(size // 50, 4096 * BLOCK)  # ext4 keeps these blocks from files for its own trees
    whole = size + inodes + kept + (JOURNAL_MIB + 3) * MIB + size // 512
    return -(-whole // MIB) * MIB


def promised_bytes(image: Path) -> int:
    """Read the size that was promised; the label of the file system holds it.

    Raises:
        Corrupt: It is not an image of ours.
    """
    with open(image, "rb") as file:
        file.seek(_LABEL)
        label = file.read(16).rstrip(b"\0")
    if not label.isdigit():
        raise Corrupt(f"{str(image)!r} is not a volume image")
    return int(label)


def has_errors(image: Path) -> bool:
    """Whether the kernel noted damage in the image's superblock."""
    with open(image, "rb") as file:
        file.seek(_STATE)
        (state,) = struct.unpack("<H", file.read(2))
    return bool(state & _ERROR_FS)


def repair(device: Path) -> bool:
    """Run e2fsck -p (safe repairs only); False when it needs a person."""
    tool = find_tool("e2fsck")
    done = subprocess.run([tool, "-p", str(device)], capture_output=True, check=False)
    return done.returncode & ~0b11 == 0  # 1: repaired, 2: repaired, and remount


def copy_image(template: Path, target: Path, *, reserve: bool) -> None:
    """Copy the written parts; with ``reserve`` every other block is allocated too.

    Raises:
        OSError: ENOSPC when the host has no room, EOPNOTSUPP when it cannot reserve.
    """
    source = os.open(template, os.O_RDONLY | os.O_CLOEXEC)
    try:
        length = os.fstat(source).st_size
        with new_image(target, length, reserve=reserve) as destination:
            for start, end in _written(source, length):
                _copy(source, destination, start, end)
    finally:
        os.close(source)


@contextmanager
def new_image(target: Path, length: int, *, reserve: bool) -> Iterator[int]:
    """Make an image of holes, or with ``reserve`` of allocated blocks, open while the block runs.

    It is unlinked when the block fails.

    Raises:
        OSError: ENOSPC when the host has no room, EOPNOTSUPP when it cannot reserve.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    descriptor = os.open(target, flags, 0o600)
    try:
        os.ftruncate(descriptor, length)
        if reserve:
            _fallocate(descriptor, length)
        yield descriptor
    except BaseException:
        os.unlink(target)
        raise
    finally:
        os.close(descriptor)


class ImageTemplates:
    """The template for each size, made when first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        for partial in directory.glob(f"*{_PARTIAL}"):  # of a worker that was killed
            with suppress(FileNotFoundError):
                partial.unlink()

    def get(self, size_bytes: int) -> Path:
        """Return the template; about 10 ms when it has to be made."""
        path = self._directory / f"ext4-{LAYOUT}-{size_bytes}.img"
        with self._lock:
            if path.exists():
                os.utime(path)
            else:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._trim()
                _make(path, size_bytes)
        return path

    def _trim(self) -> None:
        known = sorted(self._directory.glob("ext4-*.img"), key=lambda path: path.stat().st_mtime)
        for path in known[: max(len(known) - KEPT_TEMPLATES + 1, 0)]:
            path.unlink()


def find_tool(name: str) -> str:
    """Find a program that may be outside an ordinary PATH. FileNotFoundError when there is none."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "not installed (package e2fsprogs)", name)
    return found


def _make(path: Path, size_bytes: int) -> None:
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, image_bytes(size_bytes))
    finally:
        os.close(descriptor)
    command = [find_tool("mkfs.ext4"), *_OPTIONS, "-L", str(size_bytes), str(partial)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        partial.unlink()
        raise OSError(errno.EINVAL, done.stderr.decode(errors="replace").strip(), "mkfs.ext4")
    partial.rename(path)


def _fallocate(descriptor: int, length: int) -> None:
    # Not os.posix_fallocate: the C library writes every block where the kernel cannot reserve.
    if _libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _written(descriptor: int, length: int) -> list[tuple[int, int]]:
    parts = []
    offset = 0
    while offset < length:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but holes from here on
                break
            raise
        offset = os.lseek(descriptor, start, os.SEEK_HOLE)
        parts.append((start, offset))
    return parts


def _copy(source: int, destination: int, start: int, end: int) -> None:
    while start < end:
        piece = os.pread(source, min(end - start, MIB), start)
        if not piece:
            raise OSError(errno.EIO, "the template was cut short")
        start += os.pwrite(destination, piece, start)
