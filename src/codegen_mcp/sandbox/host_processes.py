"""Processes of the host by the user they run as, found in /proc and killed through pidfds.

Sources: proc_pid_status(5), pidfd_open(2).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress


def all_pids() -> Iterator[int]:
    """Every process that this one can see."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            yield int(entry)


def uids_of(pid: int) -> frozenset[int]:
    """Real, effective, saved and file system uid; empty when the process is gone.

    From ``status``: the owner of /proc/PID is root for a process that is not dumpable.
    """
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Uid:"):
                return frozenset(int(uid) for uid in line.split()[1:])
    return frozenset()


def live_uids() -> frozenset[int]:
    """Every uid that some process runs as; about 20 us for each process."""
    return frozenset().union(*(uids_of(pid) for pid in all_pids()))


def kill_matching(
    is_ours: Callable[[int], bool], *, within_s: float = 3.0
) -> tuple[int, list[int]]:
    """SIGKILL every process for which ``is_ours`` holds, also those that they fork meanwhile.

    A pidfd is opened first and ``is_ours`` asked again after it: a pid that was given to another
    process in between is not touched.

    Returns:
        How many were killed, and the pids that are still there at the deadline.
    """
    deadline = time.monotonic() + within_s
    killed: set[int] = set()
    while found := [pid for pid in all_pids() if pid != os.getpid() and is_ours(pid)]:
        if time.monotonic() >= deadline:
            return len(killed), found
        for pid in found:
            if _kill(pid, is_ours, deadline):
                killed.add(pid)
    return len(killed), []


def runs_as(uids: Collection[int]) -> Callable[[int], bool]:
    """Test for processes all of whose uids are among these; 0 is never."""
    allowed = frozenset(uids) - {0}

    def test(pid: int) -> bool:
        found = uids_of(pid)
        return bool(found) and found <= allowed and not _is_zombie(pid)

    return test


def _is_zombie(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    return True


def _kill(pid: int, is_ours: Callable[[int], bool], deadline: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not is_ours(pid):
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        left_ms = max(deadline - time.monotonic(), 0) * 1000
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(min(left_ms, 200))
        return True
    finally:
        os.close(descriptor)
