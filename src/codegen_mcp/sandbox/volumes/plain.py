"""Volumes as plain directories; the worker watches their size.

For where loop devices cannot be had. The watch lags behind a fast writer, which the probe says
(enforced by the worker): it counts with du(1), which no depth of directories defeats, soon after
the host's free space fell, and rarely while nothing moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from pathlib import Path

from codegen_mcp.core.limits import MIB
from codegen_mcp.sandbox.base import Enforcement, HostIdentity
from codegen_mcp.sandbox.volumes.attributes import spread_children
from codegen_mcp.sandbox.volumes.base import Volume, VolumeUsage
from codegen_mcp.sandbox.volumes.layout import PARTS, ROOT, check, populate
from codegen_mcp.sandbox.volumes.records import forget, number, read_record, write_record
from codegen_mcp.sandbox.volumes.space import (
    VolumeConfig,
    admit,
    free_on,
    full_when_refused,
    is_low,
)
from codegen_mcp.sandbox.volumes.threads import to_end
from codegen_mcp.sandbox.volumes.tree_copy import Copied, copy_tree
from codegen_mcp.sandbox.volumes.trees import remove_tree

POLL_S = 0.1
"""How often the host's free space is looked at: one system call."""
MAX_INTERVAL_S = 5.0
FULL_INTERVAL_S = 0.5
"""Sooner while it is full: nothing tells when files are deleted."""
COST_FACTOR = 10
"""Counting may take a tenth of the time."""
GROWN = 4 * MIB


class PlainVolume:
    """A directory and its watcher."""

    def __init__(self, directory: Path, size_bytes: int, config: VolumeConfig) -> None:
        self._config = config
        self._directory = directory
        self._size_bytes = size_bytes
        self._shared_bytes = 0
        self._used_bytes = 0
        self._grew = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def root(self) -> Path:
        """The directory."""
        return self._directory / ROOT

    @property
    def unused_bytes(self) -> int:
        """What was promised and is not yet taken from the host."""
        return max(self._size_bytes - max(self._used_bytes - self._shared_bytes, 0), 0)

    def began_with(self, copied: Copied) -> None:
        """Note what a clone has; blocks that it shares with another are not taken from the host."""
        self._used_bytes, self._shared_bytes = copied.bytes, copied.shared_bytes

    def start(self) -> None:
        """Begin to watch; ``detach`` ends it."""
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def moved(self, directory: Path) -> None:
        """The next count goes there."""
        self._directory = directory

    def usage(self) -> VolumeUsage:
        """The last count."""
        low = is_low(self._config)
        return VolumeUsage(
            used_bytes=self._used_bytes,
            size_bytes=self._size_bytes,
            full=self._used_bytes >= self._size_bytes or self._host_is_full() or low,
            exceeded=(self._grew and self._used_bytes > self._size_bytes) or low,
        )

    def abandon(self) -> None:
        """Nothing is kept but what lies on disk anyway."""

    async def detach(self) -> None:
        """End the watcher."""
        if self._watcher:
            watcher, self._watcher = self._watcher, None
            watcher.cancel()
            await asyncio.wait([watcher])

    async def count(self) -> bool:
        """Count now; whether anything changed (or could not be counted)."""
        used = await disk_usage(self.root)
        before = self._used_bytes
        if used is not None:
            self._used_bytes, self._grew = used, used > before
        return used != before

    def _host_is_full(self) -> bool:
        try:
            figures = os.statvfs(self.root)
        except FileNotFoundError:  # being moved
            return False
        return figures.f_bavail == 0 or (figures.f_files > 0 and figures.f_favail == 0)

    async def _watch(self) -> None:
        moving, cost = False, 0.0
        while True:
            await self._rest(moving, cost)
            started = time.monotonic()
            moving = await self.count()
            cost = time.monotonic() - started

    async def _rest(self, moving: bool, cost: float) -> None:
        """Wait until counting again is worth it."""
        started = time.monotonic()
        free = free_on(self._directory.parent)
        soonest = started + cost * COST_FACTOR
        full = self._used_bytes >= self._size_bytes
        latest = max(soonest, started + (FULL_INTERVAL_S if full else MAX_INTERVAL_S))
        while True:
            await asyncio.sleep(POLL_S)
            now = time.monotonic()
            grown = free - free_on(self._directory.parent) > min(GROWN, self.unused_bytes // 4)
            if now >= latest or (now >= soonest and (grown or moving)):
                return


class PlainDriver:
    """Makes them; works everywhere."""

    def __init__(self, config: VolumeConfig) -> None:
        self._config = config
        self._volumes: weakref.WeakSet[PlainVolume] = weakref.WeakSet()
        self._admission = threading.Lock()

    @property
    def name(self) -> str:
        """``plain``."""
        return "plain"

    @property
    def enforcement(self) -> Enforcement:
        """Counted, so with a lag."""
        return Enforcement.WORKER

    async def create(
        self, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> PlainVolume:
        """Make the directory; what is promised to others and not used yet counts as taken."""
        with self._admission:
            admit(self._config, size_bytes, self._outstanding())
            volume = PlainVolume(directory, size_bytes, self._config)
            self._volumes.add(volume)
        try:
            await to_end(
                lambda: _create(directory, size_bytes, identity),
                undo=lambda _: _discard(directory),
            )
        except BaseException:
            self._volumes.discard(volume)
            raise
        volume.start()
        return volume

    async def clone(
        self, source: Volume, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> PlainVolume:
        """Copy name by name; blocks are shared where the file system can."""
        with self._admission:
            admit(self._config, size_bytes, self._outstanding())
            # Holds the promise while files are copied.
            volume = PlainVolume(directory, size_bytes, self._config)
            self._volumes.add(volume)
        root, stop = source.root, threading.Event()
        try:
            volume.began_with(
                await to_end(
                    lambda: _clone(root, directory, size_bytes, identity, stop),
                    undo=lambda _: _discard(directory),
                    stop=stop.set,
                )
            )
        except BaseException:
            self._volumes.discard(volume)
            raise
        volume.start()
        return volume

    def footprint(self, size_bytes: int) -> int:
        """Just that."""
        return 1 if self._config.overcommit else size_bytes

    async def adopt(self, directory: Path, identity: HostIdentity | None) -> PlainVolume:
        """Take over the directory."""
        record = read_record(directory)
        size_bytes, shared_bytes = number(record, "size_bytes"), number(record, "shared_bytes")
        await to_end(lambda: check(directory / ROOT))
        volume = PlainVolume(directory, size_bytes, self._config)
        volume.began_with(Copied(shared_bytes=shared_bytes))
        await volume.count()
        self._volumes.add(volume)
        volume.start()
        return volume

    def free_bytes(self) -> int:
        """Room left for promises."""
        left = free_on(self._config.state_directory) - self._config.reserve_bytes
        return max(left - (0 if self._config.overcommit else self._outstanding()), 0)

    def _outstanding(self) -> int:
        return sum(volume.unused_bytes for volume in self._volumes)


async def disk_usage(directory: Path) -> int | None:
    """Bytes allocated to a tree, links counted once; None when it could not be counted."""
    process = await asyncio.create_subprocess_exec(
        *("du", "-sx", "--block-size=1", "--", str(directory)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    figure = output.split(b"\t", 1)[0]
    return int(figure) if figure.isdigit() else None


def _create(directory: Path, size_bytes: int, identity: HostIdentity | None) -> None:
    spread_children(directory)
    (directory / ROOT).mkdir(mode=0o711)
    try:
        populate(directory / ROOT, identity)
        write_record(directory, "plain", size_bytes)
    except BaseException:
        _discard(directory)
        raise


def _clone(
    source: Path,
    directory: Path,
    size_bytes: int,
    identity: HostIdentity | None,
    stop: threading.Event,
) -> Copied:
    spread_children(directory)
    (directory / ROOT).mkdir()
    try:
        os.chmod(directory / ROOT, 0o711)
        with full_when_refused("a volume was copied"):
            copied = copy_tree(source, directory / ROOT, PARTS, identity, stop)
            write_record(directory, "plain", size_bytes, shared_bytes=copied.shared_bytes)
    except BaseException:
        _discard(directory)
        raise
    return copied


def _discard(directory: Path) -> None:
    remove_tree(directory / ROOT)
    forget(directory)
