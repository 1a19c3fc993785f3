"""Which kinds of volumes there are, and which one this host gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.errors import Corrupt, Unavailable
from codegen_mcp.sandbox.base import Enforcement, HostIdentity
from codegen_mcp.sandbox.remedies import show_bytes
from codegen_mcp.sandbox.volumes import loop
from codegen_mcp.sandbox.volumes.base import Volume, VolumeDriver
from codegen_mcp.sandbox.volumes.loop import LoopDriver
from codegen_mcp.sandbox.volumes.plain import RECORD, PlainDriver
from codegen_mcp.sandbox.volumes.space import VolumeConfig

KINDS = ("loop", "plain")
"""Strongest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeProbe:
    """What can be had of one kind."""

    name: str
    available: bool
    enforcement: Enforcement
    reason: str = ""
    """Why not."""
    fix: str = ""


async def probe(config: VolumeConfig) -> list[VolumeProbe]:
    """Try every kind, strongest first."""
    reason = await loop.probe(config)
    return [
        VolumeProbe(
            name="loop",
            available=not reason,
            enforcement=Enforcement.KERNEL,
            reason=reason,
            fix=""
            if not reason
            else "run the worker as root with /dev/loop-control, e2fsprogs and a state directory "
            "on a file system that supports fallocate (ext4, xfs, btrfs)",
        ),
        VolumeProbe(name="plain", available=True, enforcement=Enforcement.WORKER),
    ]


async def choose(kind: str, config: VolumeConfig) -> tuple[Volumes, list[VolumeProbe]]:
    """Pick a kind: the one that was asked for, or with ``auto`` the strongest there is.

    Raises:
        Unavailable: The one that was asked for cannot be had here.
    """
    probes = await probe(config)
    found = {result.name: result for result in probes}
    if kind == "auto":
        kind = next(result.name for result in probes if result.available)
    if kind not in found:
        raise Unavailable(f"volume {kind!r} is unknown; use auto, {', '.join(KINDS)}")
    if not found[kind].available:
        raise Unavailable(
            f"volume {kind!r} cannot be had here: {found[kind].reason}; {found[kind].fix}"
        )
    return Volumes(kind, config), probes


class Volumes:
    """Creates volumes of one kind, and adopts those of every kind."""

    def __init__(self, kind: str, config: VolumeConfig) -> None:
        self._config = config
        self._drivers: dict[str, VolumeDriver] = {
            "loop": LoopDriver(config),
            "plain": PlainDriver(config),
        }
        self._chosen = self._drivers[kind]

    @property
    def name(self) -> str:
        """Kind of new volumes."""
        return self._chosen.name

    @property
    def enforcement(self) -> Enforcement:
        """Who enforces the size of new volumes."""
        return self._chosen.enforcement

    @property
    def warning(self) -> str:
        """A sentence for the start-up line; empty when disk promised is disk reserved."""
        if self._config.overcommit:
            return (
                "disk is overcommitted: sessions are promised more than the host has, and every "
                f"run is ended while less than {show_bytes(self._config.reserve_bytes)} are free"
            )
        return ""

    async def create(
        self, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> Volume:
        """Make one of the chosen kind."""
        return await self._chosen.create(directory, size_bytes, identity)

    async def clone(
        self, source: Volume, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> Volume:
        """Make one of the chosen kind, whatever kind the source is."""
        return await self._chosen.clone(source, directory, size_bytes, identity)

    def footprint(self, size_bytes: int) -> int:
        """What a new volume takes."""
        return self._chosen.footprint(size_bytes)

    async def adopt(self, directory: Path, identity: HostIdentity | None) -> Volume:
        """Attach by what lies there, whichever kind the dead worker used."""
        if (directory / loop.IMAGE).exists():
            return await self._drivers["loop"].adopt(directory, identity)
        if (directory / RECORD).exists():
            return await self._drivers["plain"].adopt(directory, identity)
        raise Corrupt(f"{str(directory)!r} holds no volume")

    def free_bytes(self) -> int:
        """Room left for promises."""
        return self._chosen.free_bytes()
