"""Which files processes can write without a system call or an event: from /proc.

A store through a shared mapping tells no watch. proc_pid_maps(5), proc_pid_fd(5).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

_GONE = (errno.ENOENT, errno.ESRCH)


def mapped_writers(pids: Iterable[int]) -> set[tuple[int, int]]:
    """Return (device, inode) of files that are mapped shared and writable, or open for writing.

    True for the moment only while the processes stand still. Blocks: some 0.1 ms a process.

    Args:
        pids: Those of one sandbox; what has ended meanwhile is left out.

    Raises:
        PermissionError: This process may not look (another user's, or not dumpable): anything may
            be written.
    """
    found: set[tuple[int, int]] = set()
    for pid in pids:
        try:
            found |= _mapped(pid)
            found |= _open(pid)
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return found


def _mapped(pid: int) -> set[tuple[int, int]]:
    found = set()
    with open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            fields = line.split(None, 5)
            if len(fields) > 4 and fields[1].endswith(b"s") and fields[4] != b"0":
                # A mapping without w may get it by mprotect(2) if the file was open for writing.
                major, _, minor = fields[3].partition(b":")
                found.add((os.makedev(int(major, 16), int(minor, 16)), int(fields[4])))
    return found


def _open(pid: int) -> set[tuple[int, int]]:
    found = set()
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        path = f"{directory}/{name}"
        try:
            # The owner's write bit of the link says how the file was opened.
            if os.lstat(path).st_mode & 0o200:
                there = os.stat(path)
                found.add((there.st_dev, there.st_ino))
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return found
