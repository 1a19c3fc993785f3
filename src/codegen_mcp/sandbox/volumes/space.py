"""Room on the host: what may still be promised, and the alarm before it runs out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.errors import Full
from codegen_mcp.core.limits import GIB
from codegen_mcp.sandbox.remedies import show_bytes

RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeConfig:
    """Where volumes lie and how much may be promised."""

    state_directory: Path
    """Its file system is the one that is counted."""
    reserve_bytes: int = 1 * GIB
    """Free space that is never promised."""
    overcommit: bool = False
    """Promise more than there is; then a ``SpaceWatcher`` must run."""

    def __post_init__(self) -> None:
        if self.reserve_bytes < 0:
            raise ValueError(f"reserve_bytes={self.reserve_bytes!r} must not be negative")


def free_on(path: Path) -> int:
    """Bytes that an ordinary user could still write on the file system of a path."""
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize


def admit(config: VolumeConfig, size_bytes: int, outstanding: int) -> None:
    """Allow a promise, or refuse it.

    Args:
        config: Reserve and overcommit.
        size_bytes: What is asked for.
        outstanding: Promised before and not yet taken from the free space.

    Raises:
        Full: It does not fit.
    """
    left = free_on(config.state_directory) - config.reserve_bytes
    if config.overcommit:
        size_bytes, outstanding = 1, 0
    if size_bytes > left - outstanding:
        raise Full(
            f"a volume of {show_bytes(size_bytes)} does not fit: "
            f"{show_bytes(max(left - outstanding, 0))} can be promised below "
            f"{str(config.state_directory)!r} (reserve {show_bytes(config.reserve_bytes)}); "
            "destroy sessions, ask for less disk, or free space on the host",
            reason="DISK_FULL",
            retry_after_s=RETRY_AFTER_S,
        )


class SpaceWatcher:
    """Calls when the host gets low on space, and again when it has recovered.

    Only overcommitted volumes need it. Run ``watch`` in a task of the owner's.
    """

    def __init__(
        self,
        config: VolumeConfig,
        on_low: Callable[[int], Awaitable[None]],
        on_recovered: Callable[[int], Awaitable[None]],
        *,
        interval_s: float = 0.05,
    ) -> None:
        """Watch.

        Args:
            config: The reserve is the line that counts.
            on_low: Stops every writer; awaited, with the bytes that are left.
            on_recovered: Lets them go on, once there is a quarter more than the reserve.
            interval_s: A writer does about 1 GB/s: the reserve must be longer than that.
        """
        self._config = config
        self._on_low = on_low
        self._on_recovered = on_recovered
        self._interval_s = interval_s
        self.low = False

    async def watch(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(self._interval_s)

    async def check(self) -> None:
        """Look once."""
        left = free_on(self._config.state_directory)
        reserve = self._config.reserve_bytes
        if not self.low and left < reserve:
            self.low = True
            await self._on_low(left)
        elif self.low and left > reserve + reserve // 4:
            self.low = False
            await self._on_recovered(left)
