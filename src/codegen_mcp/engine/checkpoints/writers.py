"""Which files processes may write without an event or a new ctime: from /proc.

A store through a shared mapping tells nobody. Sources: proc_pid_maps(5), proc_pid_fd(5), ptrace(2)
("Ptrace access mode checking").
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

_GONE = (errno.ENOENT, errno.ESRCH)
_DENIED = (errno.EACCES, errno.EPERM)


@dataclass(slots=True)
class Writers:
    """What was found."""

    inodes: set[int] = field(default_factory=set)
    """Of files that are mapped shared, or open for writing. Of any file system: the device that a
    mapping shows is not the one of stat(2) everywhere (btrfs)."""
    mapped: set[int] = field(default_factory=set)
    """Those of them that are mapped shared: only these can change without a new ctime."""
    unseen: list[int] = field(default_factory=list)
    """Processes whose mappings this process may not read: they may have any."""


def mapped_writers(pids: Iterable[int]) -> Writers:
    """Look at the mappings and descriptors of processes; true only while they stand still.

    Blocks: some 0.2 ms for each. Descriptors that may not be read are left out without a word:
    writing through them makes events.

    Args:
        pids: Those of one sandbox; what has ended meanwhile is left out.
    """
    found = Writers()
    for pid in pids:
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError as error:
            if error.errno not in _GONE:
                raise
            continue
        try:
            _add_mapped(pid, tasks, found.mapped)
        except OSError as error:
            if error.errno not in _DENIED:
                raise
            found.unseen.append(pid)
        for task in tasks:  # threads may have tables of their own: unshare(CLONE_FILES)
            _add_open(f"/proc/{pid}/task/{task}/fd", found.inodes)
    found.inodes |= found.mapped
    return found


def _add_mapped(pid: int, tasks: list[str], inodes: set[int]) -> None:
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/maps", "rb") as maps:
                lines = maps.readlines()
        except OSError as error:
            if error.errno in _GONE:
                continue
            raise
        if lines:  # none of a main thread that has ended before the others
            break
    else:
        return
    for line in lines:
        fields = line.split(None, 5)
        # Without w too: mprotect(2) gives it later where the file was open for writing.
        if len(fields) > 4 and fields[1].endswith(b"s") and fields[4] != b"0":
            inodes.add(int(fields[4]))


def _add_open(directory: str, inodes: set[int]) -> None:
    try:
        names = os.listdir(directory)
    except OSError as error:
        if error.errno not in (*_GONE, *_DENIED):
            raise
        return
    for name in names:
        path = f"{directory}/{name}"
        try:
            # The owner's write bit of the link says how the file was opened.
            if os.lstat(path).st_mode & 0o200:
                inodes.add(os.stat(path).st_ino)
        except OSError as error:
            if error.errno not in (*_GONE, *_DENIED):
                raise
