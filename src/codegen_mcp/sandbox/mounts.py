"""Mounts by system call, and the kernel's table of them.

Sources: mount(2), umount2(2), unshare(2), proc_pid_mountinfo(5). No helper program is spawned:
a mount takes well under a millisecond that way.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_REC = 0x4000
MS_SLAVE = 0x80000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8
CLONE_NEWNS = 0x20000

_libc = ctypes.CDLL(None, use_errno=True)
_outer = -1
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """One line of mountinfo."""

    mount_id: int
    parent_id: int
    device: str
    """``major:minor``."""
    root: Path
    """What of the file system is mounted here."""
    mount_point: Path
    options: frozenset[str]
    fs_type: str
    source: str
    super_options: frozenset[str]


def parse_mountinfo(table: bytes) -> list[MountEntry]:
    """Read a mountinfo table; blanks and other bytes in paths are octal escapes there."""
    entries = []
    for line in table.splitlines():
        before, _, after = line.partition(b" - ")
        mount_id, parent_id, device, root, mount_point, options = before.split(b" ")[:6]
        fs_type, source, super_options = after.split(b" ")[:3]
        entries.append(
            MountEntry(
                mount_id=int(mount_id),
                parent_id=int(parent_id),
                device=device.decode(),
                root=Path(_unescape(root)),
                mount_point=Path(_unescape(mount_point)),
                options=frozenset(options.decode().split(",")),
                fs_type=fs_type.decode(),
                source=_unescape(source),
                super_options=frozenset(os.fsdecode(super_options).split(",")),
            )
        )
    return entries


def read_mounts(pid: int | str = "self") -> list[MountEntry]:
    """Return the mounts that a process sees, in mount order."""
    return parse_mountinfo(Path(f"/proc/{pid}/mountinfo").read_bytes())


def mounts_below(directory: Path, entries: list[MountEntry] | None = None) -> list[MountEntry]:
    """Return the mounts on or below a directory, the last made first (the order to unmount in)."""
    table = read_mounts() if entries is None else entries
    return [entry for entry in reversed(table) if entry.mount_point.is_relative_to(directory)]


def mount(source: str, target: Path, fs_type: str, flags: int = 0, data: str = "") -> None:
    """Mount. OSError with the kernel's reason."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            fs_type.encode(),
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        target,
    )


def unmount(target: Path, flags: int = UMOUNT_NOFOLLOW) -> None:
    """Unmount; OSError EBUSY while something is open on it, EINVAL when nothing is mounted."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def enter_private_namespace() -> None:
    """Give this process its own mount table, which the kernel clears when its last user dies.

    Mounts made by the host still arrive (slave); ours never leave. Call it before any thread is
    started: the kernel moves only the calling thread.

    Raises:
        RuntimeError: The process has several threads already.
        OSError: Not permitted (needs CAP_SYS_ADMIN).
    """
    global _outer
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"a mount namespace must be entered before the {threads} threads start")
    outer = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNS), Path("/"))
    except BaseException:
        os.close(outer)
        raise
    if _outer >= 0:
        os.close(_outer)
    _outer = outer
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None), Path("/"))


def outer_namespace() -> int:
    """Descriptor of the namespace that ``enter_private_namespace`` left; -1 when it was not called.

    It stays open: for helpers that outlive this process and must not keep its mounts.
    """
    return _outer


def _check(result: int, path: Path) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
