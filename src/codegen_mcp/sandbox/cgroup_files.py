"""Reading and writing the files of cgroupfs, and where this process stands in it.

Sources: cgroups(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from codegen_mcp.sandbox.mounts import MountEntry, read_mounts


class CgroupFs(Protocol):
    """What the drivers ask of cgroupfs; every call raises OSError as the kernel would."""

    def read(self, path: Path) -> str:
        """Return a file's text."""

    def write(self, path: Path, text: str) -> None:
        """Write a file in one call."""

    def mkdir(self, path: Path) -> None:
        """Make a group; FileExistsError when it is there."""

    def rmdir(self, path: Path) -> None:
        """Remove a group without processes and children."""

    def children(self, path: Path) -> list[str]:
        """Names of the groups directly below."""

    def exists(self, path: Path) -> bool:
        """Whether a group or file is there."""


class Counters:
    """Files of one group that are read again and again; those of the kernel stay open.

    Opening costs several times what reading does, and a status call or short run reads seven.
    """

    def __init__(self, fs: CgroupFs) -> None:
        self._fs = fs
        self._keep = isinstance(fs, KernelCgroupFs)
        self._open: dict[str, int] = {}
        """By the file's name, which tells the controller; ``>`` before it: for writing."""

    def read(self, directory: Path, name: str) -> str:
        """Return a short file's text as it is now."""
        if not self._keep:
            return self._fs.read(directory / name)
        descriptor = self._open.get(name)
        if descriptor is None:
            descriptor = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
            self._open[name] = descriptor
        return os.pread(descriptor, 4096, 0).decode()

    def write(self, directory: Path, name: str, text: str) -> None:
        """Write a short file."""
        if not self._keep:
            self._fs.write(directory / name, text)
            return
        descriptor = self._open.get(">" + name)
        if descriptor is None:
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_CLOEXEC)
            self._open[">" + name] = descriptor
        os.pwrite(descriptor, text.encode(), 0)

    def close(self) -> None:
        """Close what is open; a later read opens anew."""
        while self._open:
            os.close(self._open.popitem()[1])


class KernelCgroupFs:
    """The mounted cgroupfs."""

    def read(self, path: Path) -> str:
        """Read with bare system calls: status calls come often."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            parts = []
            while part := os.read(descriptor, 65536):
                parts.append(part)
            return b"".join(parts).decode()
        finally:
            os.close(descriptor)

    def write(self, path: Path, text: str) -> None:
        """Write in one system call, as the kernel's parsers require."""
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def mkdir(self, path: Path) -> None:
        """Make a group."""
        os.mkdir(path, 0o755)

    def rmdir(self, path: Path) -> None:
        """Remove a group."""
        os.rmdir(path)

    def children(self, path: Path) -> list[str]:
        """List the groups directly below."""
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def exists(self, path: Path) -> bool:
        """Look without following anything odd."""
        return os.path.lexists(path)


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted tree of groups, and where this process is in it."""

    mount_point: Path
    own: Path
    """This process's group as a directory below the mount point."""


def pairs(text: str) -> Mapping[str, int]:
    """Parse lines of ``name value``; lines of another shape are left out."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isdecimal():
            found[name] = int(value)
    return found


def numbers(text: str) -> list[int]:
    """Parse a ``cgroup.procs``; 0 stands for a process outside our pid namespace, left out."""
    return [pid for pid in map(int, text.split()) if pid > 0]


def kill_pids(pids: Iterable[int]) -> None:
    """SIGKILL each; those that have gone meanwhile are fine."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove_group(fs: CgroupFs, path: Path) -> bool:
    """Remove an empty group; True when it is gone, False while it is busy."""
    try:
        fs.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True


def find_groups(fs: CgroupFs, top: Path, name: str) -> Iterator[Path]:
    """Find every group of that name below a mount point, wherever a dead worker had it."""
    stack = [top]
    while stack:
        path = stack.pop()
        try:
            below = fs.children(path)
        except (FileNotFoundError, PermissionError):
            continue
        for child in below:
            if child == name:
                yield path / child
            else:
                stack.append(path / child)


def hierarchies_v1() -> dict[str, Hierarchy]:
    """Map each version 1 controller that is mounted to its hierarchy."""
    found: dict[str, Hierarchy] = {}
    memberships = _memberships()
    for entry in read_mounts():
        if entry.fs_type != "cgroup":
            continue
        for controllers, path in memberships:
            for controller in controllers & entry.super_options:
                hierarchy = Hierarchy(entry.mount_point, _directory(entry, path))
                found.setdefault(controller, hierarchy)
    return found


def hierarchy_v2() -> Hierarchy | None:
    """Return the unified hierarchy, if one is mounted (also without controllers)."""
    own = next((path for controllers, path in _memberships() if not controllers), None)
    if own is None:
        return None
    for entry in read_mounts():
        if entry.fs_type == "cgroup2":
            return Hierarchy(entry.mount_point, _directory(entry, own))
    return None


def _memberships() -> list[tuple[frozenset[str], Path]]:
    """(controllers, path) of each hierarchy; none for the unified one."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        found.append((frozenset(filter(None, controllers.split(","))), Path(path)))
    return found


def _directory(entry: MountEntry, path: Path) -> Path:
    """Translate a path of /proc/self/cgroup; a container may see only a part of the tree."""
    if path.is_relative_to(entry.root) and ".." not in path.parts:
        return entry.mount_point / path.relative_to(entry.root)
    return entry.mount_point
