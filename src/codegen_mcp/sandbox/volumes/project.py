"""Volumes as directories with a project quota: bytes and number of files held by the kernel.

For ext4 and XFS that are mounted with ``prjquota``. A quota reserves nothing: what is promised and
not used yet is counted here, and something else may still fill the host.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
import threading
import weakref
from pathlib import Path

from codegen_mcp.core.errors import Corrupt, Full
from codegen_mcp.core.limits import KIB, MIB
from codegen_mcp.sandbox import project_quota
from codegen_mcp.sandbox.base import Enforcement, HostIdentity
from codegen_mcp.sandbox.volumes.attributes import spread_children
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

PROJECTS = (0x4000_0000, 0x7FFF_FFFF)
"""Numbers of ours; an administrator's begin at 1."""
BYTES_PER_INODE = 16 * KIB
"""As loop volumes have."""
FULL_BELOW = 8 * KIB
"""Less than two blocks are no use."""
FIX = (
    "run the worker as root with its state directory on ext4 (tune2fs -O quota,project -Q "
    "prjquota) or XFS, mounted with prjquota, on Linux 5.14 or later"
)


class ProjectVolume:
    """A directory whose project has a limit while it is attached."""

    def __init__(
        self,
        directory: Path,
        size_bytes: int,
        project: int,
        config: VolumeConfig,
        room: HostRoom,
    ) -> None:
        self._squeeze = Squeeze(config, room, self)
        self._directory = directory
        self._size_bytes = size_bytes
        self._project = project
        self._attached = False
        self._last = VolumeUsage(used_bytes=0, size_bytes=size_bytes, full=False)

    @property
    def root(self) -> Path:
        """The directory."""
        return self._directory / ROOT

    @property
    def unused_bytes(self) -> int:
        """What was promised and is not yet taken from the host."""
        return max(self._size_bytes - self.usage().used_bytes, 0)

    def pending_bytes(self) -> int:
        """Nothing: these file systems count what they write late at once."""
        return 0

    def moved(self, directory: Path) -> None:
        """A project follows its directory; only the path is noted."""
        self._directory = directory

    def usage(self) -> VolumeUsage:
        """Ask the file system, which answers with the project's figures; then those of the host."""
        if self._attached:
            try:
                mine, host = os.statvfs(self.root), os.statvfs(self._directory)
            except FileNotFoundError:  # being moved
                return self._last
            used = (mine.f_blocks - mine.f_bfree) * mine.f_frsize
            full = used >= self._size_bytes or mine.f_bavail * mine.f_frsize < FULL_BELOW
            full |= mine.f_favail == 0 or host.f_bavail == 0
            low, exceeded = self._squeeze.look(used)
            self._last = VolumeUsage(
                used_bytes=min(used, self._size_bytes),
                size_bytes=self._size_bytes,
                full=full or low,
                exceeded=exceeded,
            )
        return self._last

    def attached(self) -> None:
        """It is limited from now on."""
        self._attached = True

    def abandon(self) -> None:
        """Nothing is kept but what lies on disk anyway."""

    async def detach(self) -> None:
        """Give the account back; what lies there keeps its mark."""
        if self._attached:
            self.usage()
            self._attached = False
            await to_end(lambda: unlimit(self._directory, self._project))


class ProjectDriver:
    """Makes them; needs root and a file system with project quotas."""

    def __init__(self, config: VolumeConfig) -> None:
        self._config = config
        self._room = HostRoom(config)
        self._volumes: weakref.WeakSet[ProjectVolume] = weakref.WeakSet()
        self._admission = threading.Lock()

    @property
    def name(self) -> str:
        """``project``."""
        return "project"

    @property
    def enforcement(self) -> Enforcement:
        """The file system's accounts."""
        return Enforcement.KERNEL

    async def create(
        self, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> ProjectVolume:
        """Make the directory and its account: about 1 ms, in a thread."""
        first, last = PROJECTS
        project = first + secrets.randbelow(last - first + 1)
        with self._admission:
            admit(self._config, size_bytes, self._outstanding())
            volume = ProjectVolume(directory, size_bytes, project, self._config, self._room)
            self._volumes.add(volume)
        try:
            await to_end(
                lambda: self._create(directory, size_bytes, project, identity),
                undo=lambda _: _discard(directory, project),
            )
        except BaseException:
            self._volumes.discard(volume)
            raise
        volume.attached()
        return volume

    async def clone(
        self, source: Volume, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> ProjectVolume:
        """Copy name by name; XFS shares blocks, and charges them to each account."""
        volume = await self.create(directory, size_bytes, identity)
        root, stop = source.root, threading.Event()
        try:
            await to_end(lambda: _fill(root, directory, identity, stop), stop=stop.set)
        except BaseException:
            self._volumes.discard(volume)
            await volume.detach()
            await to_end(lambda: _discard(directory, 0))
            raise
        return volume

    def footprint(self, size_bytes: int) -> int:
        """Just that."""
        return 1 if self._config.overcommit else size_bytes

    async def adopt(self, directory: Path, identity: HostIdentity | None) -> ProjectVolume:
        """Limit again what a dead worker left."""
        record = read_record(directory)
        size_bytes, project = number(record, "size_bytes"), number(record, "project")
        await to_end(lambda: _adopt(directory, size_bytes, project))
        volume = ProjectVolume(directory, size_bytes, project, self._config, self._room)
        volume.attached()
        self._volumes.add(volume)
        return volume

    def free_bytes(self) -> int:
        """Room left for promises."""
        left = free_on(self._config.state_directory) - self._config.reserve_bytes
        return max(left - (0 if self._config.overcommit else self._outstanding()), 0)

    def _outstanding(self) -> int:
        return sum(volume.unused_bytes for volume in self._volumes)

    def _create(
        self, directory: Path, size_bytes: int, project: int, identity: HostIdentity | None
    ) -> None:
        spread_children(directory)
        (directory / ROOT).mkdir(mode=0o711)
        try:
            with full_when_refused("a volume was made"):
                project_quota.mark(directory / ROOT, project)
                limit(directory, project, size_bytes)
                populate(directory / ROOT, identity)
                write_record(directory, self.name, size_bytes, project=project)
        except BaseException:
            _discard(directory, project)
            raise


async def probe(config: VolumeConfig) -> str:
    """Make a small volume and write more to it than it may have; the reason why not, or nothing."""
    if os.geteuid() != 0:
        return "limiting a project needs root"
    with tempfile.TemporaryDirectory(prefix="probe-", dir=config.state_directory) as name:
        directory = Path(name)
        driver = ProjectDriver(VolumeConfig(state_directory=directory, reserve_bytes=0))
        try:
            volume = await driver.create(directory, MIB, None)
        except OSError as error:
            return f"no project quota on the state directory's file system: {error.strerror}"
        except Full as error:
            return error.message
        try:
            refused = await to_end(lambda: _is_refused(volume.root / "probe"))
            await to_end(lambda: clear_accounts(directory))
        finally:
            await volume.detach()
    return "" if refused else "this process may exceed quotas (CAP_SYS_RESOURCE)"


def limit(directory: Path, project: int, size_bytes: int) -> None:
    """Let a project have that much, and a little for the file system's own trees."""
    project_quota.set_limits(
        directory,
        project,
        size_bytes=size_bytes + max(size_bytes // 128, 256 * KIB),
        inodes=max(size_bytes // BYTES_PER_INODE, 64),
    )


def unlimit(directory: Path, project: int) -> None:
    """Take the limit away; the account goes with the last file."""
    try:
        project_quota.set_limits(directory, project, size_bytes=0, inodes=0)
    except FileNotFoundError:  # removed meanwhile
        project_quota.set_limits(directory.parent, project, size_bytes=0, inodes=0)


def clear_accounts(where: Path) -> None:
    """Take away the limits of volumes that are gone, as of a worker that was killed.

    A living volume has at least its own directory in its account.
    """
    for account in list(project_quota.projects(where, *PROJECTS)):
        if account.used_inodes == 0 and (account.limit_bytes or account.limit_inodes):
            project_quota.set_limits(where, account.project, size_bytes=0, inodes=0)


def _is_refused(path: Path) -> bool:
    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(8):
                file.write(b"x" * MIB)
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in (errno.EDQUOT, errno.ENOSPC):
            return True
        raise
    return False


def _fill(
    source: Path, directory: Path, identity: HostIdentity | None, stop: threading.Event
) -> None:
    for part in PARTS:
        (directory / ROOT / part).rmdir()
    with full_when_refused("a volume was copied"):
        copy_tree(source, directory / ROOT, PARTS, identity, stop)


def _adopt(directory: Path, size_bytes: int, project: int) -> None:
    check(directory / ROOT)
    first, last = PROJECTS
    if not first <= project <= last or project_quota.project_of(directory / ROOT) != project:
        raise Corrupt(f"{str(directory)!r} is not marked as project {project}, as its record says")
    limit(directory, project, size_bytes)


def _discard(directory: Path, project: int) -> None:
    """Remove a volume that nobody will use, and its account."""
    remove_tree(directory / ROOT)
    if project:
        unlimit(directory, project)
    forget(directory)
