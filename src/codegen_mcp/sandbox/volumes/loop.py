"""Volumes as ext4 images on loop devices: bytes and number of files are held by the kernel.

Disk promised is disk reserved: the image is allocated in full, so that a host that fills up takes
nothing from a session (a sparse image swallows acknowledged writes there). It has a journal:
without one ext4 searches its recently deleted inodes at every create, and a crash needs a repair.
``discard`` is never used, for it would give the reservation back.
"""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from codegen_mcp.core.errors import Corrupt, Full
from codegen_mcp.core.limits import MIB
from codegen_mcp.sandbox.base import Enforcement, HostIdentity
from codegen_mcp.sandbox.loop_device import attached
from codegen_mcp.sandbox.volumes import image as images
from codegen_mcp.sandbox.volumes.attributes import no_copy_on_write
from codegen_mcp.sandbox.volumes.base import Volume, VolumeUsage
from codegen_mcp.sandbox.volumes.image_clone import can_clone, fill_reserved, fill_shared
from codegen_mcp.sandbox.volumes.layout import PARTS, ROOT, check, give, populate
from codegen_mcp.sandbox.volumes.loop_mount import (
    mount,
    mount_unsettled,
    unmount,
    use_barriers,
    write_out,
)
from codegen_mcp.sandbox.volumes.overcommit import HostRoom, Squeeze
from codegen_mcp.sandbox.volumes.space import (
    VolumeConfig,
    admit,
    free_on,
    full_when_refused,
)
from codegen_mcp.sandbox.volumes.threads import to_end
from codegen_mcp.sandbox.volumes.tree_copy import copy_tree

IMAGE = "volume.img"
FULL_BELOW = 512 * 1024
"""ext4 refuses a write when less than this is left: it keeps some blocks for its own trees."""
FIX = (
    "run the worker as root with /dev/loop-control, e2fsprogs and a state directory on a file "
    "system that supports fallocate (ext4, xfs, btrfs)"
)
ADOPT_WAIT_S = 30.0
"""The kernel unmounts what a killed worker had one after the other, each with all its writes."""
_DAMAGED = frozenset({errno.EUCLEAN, errno.EINVAL, errno.EIO, errno.EBADMSG})


class LoopVolume:
    """A mounted image."""

    def __init__(
        self, directory: Path, size_bytes: int, config: VolumeConfig, room: HostRoom
    ) -> None:
        self._squeeze = Squeeze(config, room, self)
        self._root = directory / ROOT
        self._size_bytes = size_bytes
        self._attached = True
        self._detaching = asyncio.Lock()
        self._mounting = asyncio.Lock()
        self._settling: asyncio.Task[None] | None = None
        self._last = VolumeUsage(used_bytes=0, size_bytes=size_bytes, full=False)

    @property
    def root(self) -> Path:
        """The mount point."""
        return self._root

    def moved(self, directory: Path) -> None:
        """A mount follows a renamed parent by itself; only the path is noted."""
        self._root = directory / ROOT

    def usage(self) -> VolumeUsage:
        """Ask the file system; the last answer once it is detached."""
        if self._attached:
            figures = os.statvfs(self._root)
            left = figures.f_bavail * figures.f_frsize
            used = (figures.f_blocks - figures.f_bfree) * figures.f_frsize
            # One file as long as the promise fits, with room left that was never promised.
            full = left < FULL_BELOW or used >= self._size_bytes or figures.f_favail == 0
            low, exceeded = self._squeeze.look(used)
            self._last = VolumeUsage(
                used_bytes=min(used, self._size_bytes),
                size_bytes=self._size_bytes,
                full=full or low,
                exceeded=exceeded,
            )
        return self._last

    def pending_bytes(self) -> int:
        """What is in the image and not in its blocks yet."""
        with suppress(OSError):  # being moved
            if self._attached:
                figures = os.statvfs(self._root)
                used = (figures.f_blocks - figures.f_bfree) * figures.f_frsize
                return max(used - os.stat(self._root.parent / IMAGE).st_blocks * 512, 0)
        return 0

    @property
    def size_bytes(self) -> int:
        """What was promised."""
        return self._size_bytes

    def settle(self, device: int) -> None:
        """Write an unsettled image out in the background; ``detach`` waits for that.

        Takes over the open device, which then does direct I/O and obeys write barriers.
        """
        work = self._settle(device)
        self._settling = asyncio.get_running_loop().create_task(work, name="volume-settle")

    async def _settle(self, device: int) -> None:
        await to_end(lambda: write_out(device))
        async with self._mounting:
            if self._attached:
                root = os.open(self._root, os.O_PATH | os.O_CLOEXEC)
                await to_end(lambda: use_barriers(root))

    def abandon(self) -> None:
        """Nothing is kept but what lies on disk anyway."""

    async def detach(self) -> None:
        """Unmount; the device goes with its last user."""
        async with self._detaching:
            async with self._mounting:
                if self._attached:
                    self.usage()
                    self._attached = False
                    await to_end(lambda: unmount(self.root))
            if self._settling is not None:
                await asyncio.gather(self._settling, return_exceptions=True)


class LoopDriver:
    """Makes them; needs root, loop devices and a file system that can reserve."""

    def __init__(self, config: VolumeConfig) -> None:
        self._config = config
        self._room = HostRoom(config)
        self._templates = images.ImageTemplates(config.state_directory / "volume-templates")
        self._admission = threading.Lock()

    @property
    def name(self) -> str:
        """``loop``."""
        return "loop"

    @property
    def enforcement(self) -> Enforcement:
        """The file system itself."""
        return Enforcement.KERNEL

    async def create(
        self, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> LoopVolume:
        """Copy a template, reserve, attach and mount: about 5 ms, in a thread."""
        await to_end(
            lambda: self._create(directory, size_bytes, identity),
            undo=lambda _: _discard(directory),
        )
        return LoopVolume(directory, size_bytes, self._config, self._room)

    async def clone(
        self, source: Volume, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> LoopVolume:
        """Copy what was written of the image; name by name where that cannot be.

        Without a name is what a file call has not finished: it may be written to meanwhile.
        """
        root, stop = source.root, threading.Event()
        device = -1
        if isinstance(source, LoopVolume) and source.size_bytes == size_bytes and can_clone(root):
            device = await to_end(
                lambda: self._clone(root, directory, size_bytes, identity, stop),
                undo=lambda device: _discard(directory, device),
                stop=stop.set,
            )
        if device >= 0:
            volume = LoopVolume(directory, size_bytes, self._config, self._room)
            volume.settle(device)
            return volume
        volume = await self.create(directory, size_bytes, identity)
        try:
            await to_end(lambda: _copy_files(root, directory, identity, stop), stop=stop.set)
        except BaseException:
            await volume.detach()
            await to_end(lambda: _discard(directory))
            raise
        return volume

    def footprint(self, size_bytes: int) -> int:
        """Length of its image."""
        return 1 if self._config.overcommit else images.image_bytes(size_bytes)

    async def adopt(self, directory: Path, identity: HostIdentity | None) -> LoopVolume:
        """Mount what a dead worker left; the journal is replayed, e2fsck runs only on damage."""
        size_bytes = await to_end(
            lambda: _adopt(directory), undo=lambda _: unmount(directory / ROOT)
        )
        return LoopVolume(directory, size_bytes, self._config, self._room)

    def free_bytes(self) -> int:
        """Room left for promises; those that were made are taken from the free space already."""
        return max(free_on(self._config.state_directory) - self._config.reserve_bytes, 0)

    def _create(self, directory: Path, size_bytes: int, identity: HostIdentity | None) -> None:
        no_copy_on_write(directory)
        with self._admission:
            admit(self._config, images.image_bytes(size_bytes), 0)
            with full_when_refused("a volume was reserved"):
                template = self._templates.get(size_bytes)
                reserve = not self._config.overcommit
                images.copy_image(template, directory / IMAGE, reserve=reserve)
        try:
            (directory / ROOT).mkdir(mode=0o711)
            with attached(directory / IMAGE) as device:
                mount(device, directory / ROOT)
            populate(directory / ROOT, identity)
        except BaseException:
            _discard(directory)
            raise

    def _clone(
        self,
        source: Path,
        directory: Path,
        size_bytes: int,
        identity: HostIdentity | None,
        stop: threading.Event,
    ) -> int:
        """Return the device, open; -1 when the image could not be copied as of one moment."""
        no_copy_on_write(directory)
        root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            image = source.parent / IMAGE
            overcommit = self._config.overcommit
            with ExitStack() as stack, full_when_refused("a volume was copied"):
                with self._admission:
                    admit(self._config, images.image_bytes(size_bytes), 0)
                    new = images.new_image(
                        directory / IMAGE, os.stat(image).st_size, reserve=not overcommit
                    )
                    target = stack.enter_context(new)
                if overcommit:
                    device = fill_shared(root, image, target, directory / IMAGE, stop)
                else:
                    device = fill_reserved(root, image, directory / IMAGE, stop)
                if device < 0:
                    os.unlink(directory / IMAGE)
                    return -1
        finally:
            os.close(root)
        try:
            (directory / ROOT).mkdir(mode=0o711)
            mount_unsettled(device, directory / ROOT)
            check(directory / ROOT)
            give(directory / ROOT, identity)
        except BaseException:
            _discard(directory, device)
            raise
        return device


async def probe(config: VolumeConfig) -> str:
    """Make one small volume, write to it and take it down; the reason why not, or nothing."""
    if os.geteuid() != 0:
        return "mounting needs root"
    with tempfile.TemporaryDirectory(prefix="probe-", dir=config.state_directory) as name:
        directory = Path(name)
        driver = LoopDriver(VolumeConfig(state_directory=directory, reserve_bytes=0))
        try:
            volume = await driver.create(directory, 8 * MIB, None)
        except (OSError, Full) as error:
            return str(error)
        try:
            await to_end(lambda: _write_through(volume.root / "probe"))
        except OSError as error:
            return str(error)
        finally:
            await volume.detach()
    return ""


def _write_through(path: Path) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"probe")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_files(
    source: Path, directory: Path, identity: HostIdentity | None, stop: threading.Event
) -> None:
    root = directory / ROOT
    for part in PARTS:
        (root / part).rmdir()
    with full_when_refused("a volume was copied"):
        copy_tree(source, root, PARTS, identity, stop)


def _adopt(directory: Path) -> int:
    image = directory / IMAGE
    root = directory / ROOT
    try:
        size_bytes = images.promised_bytes(image)
        root.mkdir(mode=0o711, exist_ok=True)
        with attached(image, wait_s=ADOPT_WAIT_S) as device:
            if images.has_errors(image) and not images.repair(device):
                raise Corrupt(f"{str(image)!r} is damaged beyond automatic repair")
            try:
                mount(device, root)
            except OSError as error:
                if error.errno not in _DAMAGED or not images.repair(device):
                    raise
                mount(device, root)
    except BlockingIOError as error:
        raise Corrupt(f"{str(image)!r} is still attached to a loop device") from error
    except OSError as error:
        raise Corrupt(f"{str(image)!r} cannot be attached: {error}") from error
    try:
        check(root)
    except BaseException:
        unmount(root)
        raise
    return size_bytes


def _discard(directory: Path, device: int = -1) -> None:
    """Take down a volume that nobody will use, and close its device."""
    if device >= 0:
        os.close(device)
    unmount(directory / ROOT)
    with suppress(FileNotFoundError):
        (directory / ROOT).rmdir()
    with suppress(FileNotFoundError):
        (directory / IMAGE).unlink()
