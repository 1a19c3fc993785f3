"""Volumes: the directory in which a session's bytes lie, and what bounds them.

Layout below ``Volume.root``: ``workspace/`` and ``venv/``, owned by the session's identity. The
root may be a mount point; its parent (the slot directory) can be renamed while it is mounted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from codegen_mcp.sandbox.base import Enforcement

if TYPE_CHECKING:
    from codegen_mcp.sandbox.base import HostIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeUsage:
    """What is used of what was promised."""

    used_bytes: int
    size_bytes: int
    full: bool
    """Whether a write was, or would now be, refused for want of space or inodes."""
    exceeded: bool = False
    """Only the worker can stop the writer, and must: more is used than was promised and it still
    grows, or the host is nearly full of what was overcommitted."""


class Volume(Protocol):
    """One session's storage."""

    @property
    def root(self) -> Path:
        """Holds ``workspace/`` and ``venv/``."""

    def moved(self, directory: Path) -> None:
        """The slot directory was renamed to this."""

    def usage(self) -> VolumeUsage:
        """Cheap (statvfs or the watcher's last count)."""

    def abandon(self) -> None:
        """Its files are wanted no more: ``detach`` need not put on disk what is not there."""

    async def detach(self) -> None:
        """Unmount; idempotent; the files stay, or come, on disk."""


class VolumeDriver(Protocol):
    """Makes volumes of one kind in slot directories."""

    @property
    def name(self) -> str:
        """As in the registry: ``loop``, ``plain``."""

    @property
    def enforcement(self) -> Enforcement:
        """Who enforces the size."""

    async def create(
        self, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> Volume:
        """Make it below the existing ``directory``, reserved in full.

        Raises:
            Full: The host has not that much room left beyond its reserve.
        """

    async def clone(
        self, source: Volume, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> Volume:
        """Make one below the existing ``directory`` that has what ``source`` has now.

        It is independent, reserved as by ``create``, and all of it belongs to ``identity``. The
        source stays attached, and what has a name there must not change meanwhile. It may be of
        another kind, and its size another one. The clone is on disk soon afterwards, not at once.
        One that fails or is cancelled leaves nothing.

        Raises:
            Full: The host has not that much room left, or the content does not fit.
        """

    def footprint(self, size_bytes: int) -> int:
        """Return what a volume of that size takes from ``free_bytes``."""

    async def adopt(self, directory: Path, identity: HostIdentity | None) -> Volume:
        """Attach one that a dead worker left.

        Raises:
            Corrupt: It cannot be attached.
        """

    def free_bytes(self) -> int:
        """Room left for promises."""
