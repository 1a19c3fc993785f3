"""Project quotas: bytes and inodes of a directory tree, held by the kernel.

Every file made in a directory that passes its project on belongs to that project, whoever makes it.
statvfs(2) on such a directory answers with the project's limits. Sources: quotactl(2),
ioctl_xfs_fsgetxattr(2), xfs_quota(8), kernel filesystems/ext4/overview.rst.

A file's owner may change its project only in the host's own user namespace (kernel
fs/ioctl.c, fileattr_set_prepare); the sandbox's system call filter refuses it everywhere.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_XFLAG_PROJINHERIT = 0x200
_XATTR = struct.Struct("=IIIII8x")
"""struct fsxattr: xflags, extsize, nextents, projid, cowextsize."""

Q_GETQUOTA, Q_SETQUOTA, Q_GETNEXTQUOTA = 0x800007, 0x800008, 0x800009
PRJQUOTA = 2
QIF_LIMITS = 0x5
_DQBLK = struct.Struct("=QQQQQQQQI4x")
"""struct if_dqblk: hard, soft, used bytes; hard, soft, used inodes; two times; what is set."""
_NEXT_DQBLK = struct.Struct("=QQQQQQQQII")
"""The same with the project's number at its end."""
_UNIT = 1024
"""Of the limits in bytes (QIF_DQBLKSIZE)."""
SYS_QUOTACTL_FD = 443
"""The same number on every architecture of today; Linux 5.14 on."""
CAP_SYS_RESOURCE = 24
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectUsage:
    """What a project may have, and has."""

    project: int
    limit_bytes: int
    used_bytes: int
    limit_inodes: int
    used_inodes: int


def mark(directory: Path, project: int) -> None:
    """Put an empty directory and all that is made in it into a project.

    Raises:
        OSError: ENOTTY or EOPNOTSUPP where the file system knows no projects.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        buffer = bytearray(_XATTR.size)
        fcntl.ioctl(descriptor, FS_IOC_FSGETXATTR, buffer)
        flags, size, count, _, copied = _XATTR.unpack(buffer)
        flags |= FS_XFLAG_PROJINHERIT
        fcntl.ioctl(descriptor, FS_IOC_FSSETXATTR, _XATTR.pack(flags, size, count, project, copied))
    finally:
        os.close(descriptor)


def project_of(directory: Path) -> int:
    """Return the project of a directory that passes it on; 0 when it does not."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        buffer = bytearray(_XATTR.size)
        fcntl.ioctl(descriptor, FS_IOC_FSGETXATTR, buffer)
    finally:
        os.close(descriptor)
    flags, _, _, project, _ = _XATTR.unpack(buffer)
    return int(project) if flags & FS_XFLAG_PROJINHERIT else 0


def set_limits(where: Path, project: int, *, size_bytes: int, inodes: int) -> None:
    """Limit a project hard; 0 is no limit.

    Raises:
        OSError: ESRCH where quotas are not on, EPERM, ENOSYS before Linux 5.14.
    """
    blocks = -(-size_bytes // _UNIT)
    buffer = ctypes.create_string_buffer(
        _DQBLK.pack(blocks, blocks, 0, inodes, inodes, 0, 0, 0, QIF_LIMITS), _DQBLK.size
    )
    _quotactl(where, Q_SETQUOTA, project, buffer)


def usage(where: Path, project: int) -> ProjectUsage:
    """Read a project's account; all 0 when it has none."""
    buffer = ctypes.create_string_buffer(_DQBLK.size)
    try:
        _quotactl(where, Q_GETQUOTA, project, buffer)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    hard, _, used, hard_inodes, _, inodes, *_ = _DQBLK.unpack(buffer.raw)
    return ProjectUsage(
        project=project,
        limit_bytes=hard * _UNIT,
        used_bytes=used,
        limit_inodes=hard_inodes,
        used_inodes=inodes,
    )


def projects(where: Path, first: int, last: int) -> Iterator[ProjectUsage]:
    """Go through the accounts of a range of projects."""
    project = first
    while project <= last:
        buffer = ctypes.create_string_buffer(_NEXT_DQBLK.size)
        try:
            _quotactl(where, Q_GETNEXTQUOTA, project, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH):
                return
            raise
        hard, _, used, hard_inodes, _, inodes, _, _, _, number = _NEXT_DQBLK.unpack(buffer.raw)
        if number > last:
            return
        yield ProjectUsage(
            project=number,
            limit_bytes=hard * _UNIT,
            used_bytes=used,
            limit_inodes=hard_inodes,
            used_inodes=inodes,
        )
        project = number + 1


def give_up_exemption() -> None:
    """Bind this thread, and all that it starts from here on, by quotas as others are.

    ext4 lets CAP_SYS_RESOURCE write past every quota (kernel fs/quota/dquot.c, ignore_hardlimit),
    and a worker that is root writes for its sessions. Call it before any thread is started.
    """
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data) != 0:
        return
    sets = list(struct.unpack("=6I", data.raw))
    lost = ~(1 << CAP_SYS_RESOURCE) & 0xFFFFFFFF
    sets[:3] = [one & lost for one in sets[:3]]
    # Giving up is always permitted (capset(2)).
    _libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *sets), 24))


def _quotactl(where: Path, command: int, project: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    descriptor = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
    try:
        result = _libc.syscall(
            ctypes.c_long(SYS_QUOTACTL_FD),
            ctypes.c_uint(descriptor),
            ctypes.c_uint(command << 8 | PRJQUOTA),
            ctypes.c_uint(project),
            buffer,
        )
        if result != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(where))
    finally:
        os.close(descriptor)
