"""Whether a sandbox that waits is still as it was when it was put by.

Nobody runs anything in a waiting sandbox. One whose files or processes changed was reached by
somebody: a neighbour that broke out, a process that was left over under its user id, a program on
the host. It is thrown away, not cleaned: nobody can say what else was done to it.

Two looks. ``changed``, at the hand-out, is one lstat(2) for each name of the volume, some fifteen,
and one read of the control group's list: below a tenth of the time that a session takes to make.
A directory whose entries change gets a new change time, so nothing has to be listed; that time
cannot be set back by who may not set the clock, so a file that was changed and restored shows too.
``examined``, every few seconds while it waits, also looks at each process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from codegen_mcp.core.errors import WrongState
from codegen_mcp.engine.slot import Slot

MOST_NAMES = 2000
"""In a new volume; one with more cannot wait."""
_LIST_BYTES = 64 * 1024
_STOPPED = b"T"
"""proc_pid_stat(5). Not ``t``: gVisor traces processes of its own."""


class Change(StrEnum):
    """What is not as it was; the label of the metric."""

    LOST = "lost"
    """Its guest has ended."""
    STOPPED = "stopped"
    """A process of it stands still: the guest could not answer."""
    PROCESSES = "processes"
    """There are others than those that were put by."""
    FILES = "files"


@dataclass(frozen=True, slots=True)
class Pristine:
    """A sandbox as it was when it was put by."""

    names: tuple[tuple[str, int], ...]
    """Path and change time in ns, of the volume's root and of everything below."""
    group: str
    """The control group's list of processes; empty where there is none. Children inherit the group
    in every hierarchy, so one list is enough."""
    processes: frozenset[int]
    """Host pids."""


def park(slot: Slot) -> None:
    """Note how a newly booted slot is; it waits from here on.

    Raises:
        WrongState: It was a session's: what was used once is never handed out again.
        OSError: Its files cannot be looked at, or are too many to be those of a new one.
    """
    if slot.used:
        raise WrongState(
            f"sandbox {slot.directory.name!r} served a session and cannot serve another"
        )
    lists = slot.cgroup.attach_files if slot.cgroup is not None else ()
    processes = slot.sandbox.processes() if slot.sandbox is not None else []
    slot.pristine = Pristine(
        names=tuple(_names(slot.volume.root)),
        group=os.fspath(lists[0]) if lists else "",
        processes=frozenset(processes),
    )


def changed(slot: Slot) -> Change | None:
    """Return what of a waiting slot is not as it was, at a quick look; None where all of it is."""
    pristine = slot.pristine
    if slot.sandbox is None or not slot.sandbox.alive:
        return Change.LOST
    if pristine is None or slot.used:
        return Change.PROCESSES
    try:
        if pristine.group and not pristine.processes.issuperset(_listed(pristine.group)):
            return Change.PROCESSES
        if any(os.lstat(path).st_ctime_ns != then for path, then in pristine.names):
            return Change.FILES
    except OSError:
        return Change.FILES
    return None


def examined(slot: Slot) -> Change | None:
    """``changed``, and a look at each process; some tenths of a millisecond."""
    change = changed(slot)
    if change is not None or slot.sandbox is None or slot.pristine is None:
        return change
    processes = slot.sandbox.processes()
    slot.cpu_us = slot.sandbox.usage().cpu_us
    if not slot.pristine.processes.issuperset(processes):
        return Change.PROCESSES
    return Change.STOPPED if any(map(_stands_still, processes)) else None


def _names(root: Path) -> Iterator[tuple[str, int]]:
    yield os.fspath(root), os.lstat(root).st_ctime_ns
    waiting, seen = [os.fspath(root)], 0
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                seen += 1
                if seen > MOST_NAMES:
                    raise OSError(f"more than {MOST_NAMES} names below {str(root)!r}")
                yield entry.path, entry.stat(follow_symlinks=False).st_ctime_ns
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _listed(path: str) -> Iterator[int]:
    return map(int, _read(path).split())


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _LIST_BYTES)
    finally:
        os.close(descriptor)


def _stands_still(pid: int) -> bool:
    try:
        text = _read(f"/proc/{pid}/stat")
    except OSError:
        return False
    return text[text.rindex(b")") + 2 :][:1] == _STOPPED
