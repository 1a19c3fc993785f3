"""Room on the host: what may still be promised, and when it runs out all the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Promise more than there is; writers are then stopped at the reserve (``is_low``)."""

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


@contextmanager
def full_when_refused(doing: str) -> Iterator[None]:
    """Raise Full for what the kernel refuses for want of room while the block runs."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Full(
            f"the host ran out of disk while {doing}; destroy sessions or free space on the host",
            reason="DISK_FULL",
            retry_after_s=RETRY_AFTER_S,
        ) from error


def is_low(config: VolumeConfig) -> bool:
    """Whether writers must stop now, because the host cannot hold what was promised.

    Only overcommitted volumes get there. A run is asked this ten times a second, and a writer
    does about 1 GB/s: the reserve must be longer than what is written until then.
    """
    return config.overcommit and free_on(config.state_directory) < config.reserve_bytes
