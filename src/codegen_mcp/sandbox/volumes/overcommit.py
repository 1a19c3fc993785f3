"""Who must stop writing when overcommitted volumes have taken nearly all of the host.

A kernel writes late: what a volume has taken may not be on the host's disk yet, and a host that is
full by then would lose it. So it counts as taken (``pending_bytes``), and writers are stopped while
the reserve is still there. Those that do not write go on until half of it is gone.
"""

from __future__ import annotations

import time
import weakref
from typing import Protocol

from codegen_mcp.core.limits import KIB
from codegen_mcp.sandbox.volumes.space import VolumeConfig, free_on

FRESH_S = 0.02
"""Every run asks ten times a second; the answer serves all of them."""
STILL = 64 * KIB
"""A volume that took less than this since then is no writer's."""


class Pending(Protocol):
    """A volume, as far as it counts here."""

    def pending_bytes(self) -> int:
        """What it has taken and the host's file system does not know of yet."""


class HostRoom:
    """What is left for the volumes of one driver."""

    def __init__(self, config: VolumeConfig) -> None:
        self._config = config
        self._volumes: weakref.WeakSet[Pending] = weakref.WeakSet()
        self._asked = float("-inf")
        self._left = 0

    def join(self, volume: Pending) -> None:
        """Count a volume for as long as there is one."""
        self._volumes.add(volume)

    def left(self) -> int:
        """Bytes free on the host, less what is still to be written there."""
        now = time.monotonic()
        if now - self._asked >= FRESH_S:
            pending = sum(volume.pending_bytes() for volume in list(self._volumes))
            self._left = free_on(self._config.state_directory) - pending
            self._asked = now
        return self._left


class Squeeze:
    """One volume's view of the room: whether it is short, and whether this one must stop."""

    def __init__(self, config: VolumeConfig, room: HostRoom, volume: Pending) -> None:
        self._config = config
        self._room = room
        self._calm_bytes: int | None = None
        """In use when there was room last, or when first asked."""
        room.join(volume)

    def look(self, used_bytes: int) -> tuple[bool, bool]:
        """Return (whether the reserve is touched, whether this volume's writers must stop)."""
        if not self._config.overcommit:
            return False, False
        left, reserve = self._room.left(), self._config.reserve_bytes
        if left >= reserve or self._calm_bytes is None:
            self._calm_bytes = used_bytes
        if left >= reserve:
            return False, False
        return True, left < reserve // 2 or used_bytes > self._calm_bytes + STILL
