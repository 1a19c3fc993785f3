"""What volumes in memory have in common: a tmpfs holds the size, the end puts a copy on disk.

Their content is charged to the session's memory while it is written, and it is gone with a worker
that is killed: only ``detach`` puts it on disk, from where ``adopt`` takes it. The record says
which of the two it was, so that old content is never taken for what was acknowledged since.
Source: tmpfs(5).
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from codegen_mcp.core.errors import Corrupt, Full
from codegen_mcp.core.limits import KIB
from codegen_mcp.sandbox import mounts
from codegen_mcp.sandbox.base import Enforcement, HostIdentity
from codegen_mcp.sandbox.remedies import show_bytes
from codegen_mcp.sandbox.volumes.base import Volume, VolumeUsage
from codegen_mcp.sandbox.volumes.layout import PARTS, ROOT, check, populate
from codegen_mcp.sandbox.volumes.overcommit import HostRoom, Squeeze
from codegen_mcp.sandbox.volumes.records import forget, number, read_record, write_record
from codegen_mcp.sandbox.volumes.space import (
    VolumeConfig,
    admit,
    free_on,
    full_when_refused,
)
from codegen_mcp.sandbox.volumes.threads import to_end
from codegen_mcp.sandbox.volumes.tree_copy import copy_tree
from codegen_mcp.sandbox.volumes.trees import remove_tree

KEPT = "kept"
"""Directory beside the mount point that has the parts on disk."""
FLAGS = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOATIME
BYTES_PER_INODE = 16 * KIB
"""As loop volumes have."""
SLACK = 256 * KIB
FULL_BELOW = 8 * KIB
FIX = "run the worker as root; sessions then need as much memory as they have disk"


class MemoryVolume:
    """A mounted one."""

    def __init__(
        self,
        driver: MemoryDriver,
        directory: Path,
        size_bytes: int,
        config: VolumeConfig,
        room: HostRoom,
    ) -> None:
        self._driver = driver
        self._squeeze = Squeeze(config, room, self)
        self._directory = directory
        self._size_bytes = size_bytes
        self._wanted = True
        self._kept_bytes = 0
        self.attached = False
        self.kept_bytes = 0
        """On disk, below what is in memory."""
        self._last = VolumeUsage(used_bytes=0, size_bytes=size_bytes, full=False)

    @property
    def root(self) -> Path:
        """The mount point."""
        return self._directory / ROOT

    @property
    def size_bytes(self) -> int:
        """What was promised."""
        return self._size_bytes

    def moved(self, directory: Path) -> None:
        """A mount follows a renamed parent by itself; only the path is noted."""
        self._directory = directory

    def usage(self) -> VolumeUsage:
        """Ask the file system; the last answer once it is detached."""
        if self.attached:
            figures = os.statvfs(self.root)
            left = figures.f_bavail * figures.f_frsize
            used = self.kept_bytes + (figures.f_blocks - figures.f_bfree) * figures.f_frsize
            low, exceeded = self._squeeze.look(used)
            full = used >= self._size_bytes or left < FULL_BELOW or figures.f_favail == 0
            self._last = VolumeUsage(
                used_bytes=min(used, self._size_bytes),
                size_bytes=self._size_bytes,
                full=full or low,
                exceeded=exceeded,
            )
        return self._last

    def pending_bytes(self) -> int:
        """What goes to disk at the end."""
        return self._last.used_bytes if self.attached else 0

    def abandon(self) -> None:
        """What is in memory need not be put on disk."""
        self._wanted = False

    async def detach(self) -> None:
        """Put what is in memory on disk if it is still wanted, and unmount."""
        if self.attached:
            self.usage()
            self.attached = False
            await to_end(self._leave)

    def _leave(self) -> None:
        partial = self._directory / f"{KEPT}.partial"
        try:
            if self._wanted:
                remove_tree(partial)
                partial.mkdir(mode=0o711)
                with full_when_refused("a volume in memory was put on disk"):
                    self._kept_bytes = copy_parts(self.root, partial)
        except BaseException:
            remove_tree(partial)
            raise
        finally:
            self._driver.take_down(self._directory)
        if self._wanted:
            _replace_kept(self._directory)
            write_record(
                self._directory, self._driver.name, self._size_bytes, kept=self._kept_bytes + 1
            )


class MemoryDriver(ABC):
    """Makes them; needs root."""

    def __init__(self, config: VolumeConfig) -> None:
        self._config = config
        self._room = HostRoom(config)
        self._volumes: weakref.WeakSet[MemoryVolume] = weakref.WeakSet()
        self._admission = threading.Lock()

    @property
    @abstractmethod
    def name(self) -> str:
        """In records."""

    @abstractmethod
    def put_up(self, directory: Path, size_bytes: int, kept_bytes: int) -> int:
        """Mount at the root what is kept below the directory; return how much of it stays there."""

    @abstractmethod
    def take_down(self, directory: Path) -> None:
        """Unmount all."""

    @property
    def enforcement(self) -> Enforcement:
        """The file system itself."""
        return Enforcement.KERNEL

    async def create(
        self, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> MemoryVolume:
        """Mount an empty one: about 1 ms, in a thread. Its size is promised on disk, too."""
        volume = self._promise(directory, size_bytes)
        await self._make(volume, lambda: _make_kept(directory, identity), directory)
        return volume

    async def clone(
        self, source: Volume, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> MemoryVolume:
        """Copy name by name."""
        volume = self._promise(directory, size_bytes)
        root, stop = source.root, threading.Event()

        def prepare() -> int:
            (directory / KEPT).mkdir(mode=0o711)
            with full_when_refused("a volume was copied"):
                copied = copy_tree(root, directory / KEPT, PARTS, identity, stop)
            if copied.bytes > size_bytes:
                raise Full(
                    f"{show_bytes(copied.bytes)} do not fit a volume of {show_bytes(size_bytes)}; "
                    "ask for more disk",
                    reason="DISK_FULL",
                )
            return copied.bytes

        await self._make(volume, prepare, directory, stop)
        return volume

    def footprint(self, size_bytes: int) -> int:
        """Just that: it goes to disk at the end."""
        return 1 if self._config.overcommit else size_bytes

    async def adopt(self, directory: Path, identity: HostIdentity | None) -> MemoryVolume:
        """Take what was put on disk; there is nothing when the worker was killed."""
        record = read_record(directory)
        kept = number(record, "kept")
        if not kept:
            raise Corrupt(
                f"the files of {str(directory)!r} were in memory and went with the worker that "
                "was killed; use a volume on disk for sessions that must outlive it"
            )
        size_bytes = number(record, "size_bytes")
        volume = MemoryVolume(self, directory, size_bytes, self._config, self._room)
        await to_end(
            lambda: self._adopt(volume, directory, kept), undo=lambda _: self.take_down(directory)
        )
        self._volumes.add(volume)
        return volume

    def free_bytes(self) -> int:
        """Room left for promises."""
        left = free_on(self._config.state_directory) - self._config.reserve_bytes
        return max(left - (0 if self._config.overcommit else self._outstanding()), 0)

    def _promise(self, directory: Path, size_bytes: int) -> MemoryVolume:
        with self._admission:
            admit(self._config, size_bytes, self._outstanding())
            volume = MemoryVolume(self, directory, size_bytes, self._config, self._room)
            self._volumes.add(volume)
        return volume

    def _outstanding(self) -> int:
        return sum(volume.size_bytes - volume.kept_bytes for volume in self._volumes)

    async def _make(
        self,
        volume: MemoryVolume,
        prepare: Callable[[], int],
        directory: Path,
        stop: threading.Event | None = None,
    ) -> None:
        def make() -> None:
            try:
                (directory / ROOT).mkdir(mode=0o711)
                self._attach(volume, directory, prepare())
            except BaseException:
                self._discard(directory)
                raise

        try:
            await to_end(
                make,
                undo=lambda _: self._discard(directory),
                stop=stop.set if stop is not None else None,
            )
        except BaseException:
            volume.attached = False
            self._volumes.discard(volume)
            raise

    def _adopt(self, volume: MemoryVolume, directory: Path, kept: int) -> None:
        (directory / ROOT).mkdir(mode=0o711, exist_ok=True)
        check(directory / KEPT)
        try:
            self._attach(volume, directory, kept)
            check(directory / ROOT)
        except BaseException:
            volume.attached = False
            self.take_down(directory)
            raise

    def _attach(self, volume: MemoryVolume, directory: Path, kept_bytes: int) -> None:
        """From here on the copy on disk is old: the record says so before anything is written."""
        with full_when_refused("a volume was mounted"):
            volume.kept_bytes = self.put_up(directory, volume.size_bytes, kept_bytes)
            os.chmod(directory / ROOT, 0o711)
            write_record(directory, self.name, volume.size_bytes)
        volume.attached = True

    def _discard(self, directory: Path) -> None:
        self.take_down(directory)
        for name in (KEPT, ROOT):
            remove_tree(directory / name)
        forget(directory)


def copy_parts(source: Path, target: Path) -> int:
    """Copy the parts as they are; return what the copy takes. A missing one is for ``check``."""
    parts = tuple(part for part in PARTS if (source / part).is_dir())
    found = source.lstat() if not parts else (source / parts[0]).lstat()
    owner = None
    if found.st_uid != os.geteuid():
        owner = HostIdentity(uid=found.st_uid, gid=found.st_gid)
    return copy_tree(source, target, parts, owner, threading.Event()).bytes


def _replace_kept(directory: Path) -> None:
    remove_tree(directory / KEPT)
    (directory / f"{KEPT}.partial").rename(directory / KEPT)


def _make_kept(directory: Path, identity: HostIdentity | None) -> int:
    (directory / KEPT).mkdir(mode=0o711)
    populate(directory / KEPT, identity)
    return 0
