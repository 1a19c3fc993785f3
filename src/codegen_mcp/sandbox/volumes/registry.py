"""Which kinds of volumes there are, and which one this host gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.errors import Corrupt, Unavailable
from codegen_mcp.sandbox.base import Enforcement, HostIdentity
from codegen_mcp.sandbox.remedies import show_bytes
from codegen_mcp.sandbox.volumes import loop, memory, overlay, project, reflink, tmpfs
from codegen_mcp.sandbox.volumes.base import Volume, VolumeDriver
from codegen_mcp.sandbox.volumes.loop import LoopDriver
from codegen_mcp.sandbox.volumes.plain import PlainDriver
from codegen_mcp.sandbox.volumes.records import RECORD, read_record
from codegen_mcp.sandbox.volumes.space import VolumeConfig


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of volume."""

    driver: Callable[[VolumeConfig], VolumeDriver]
    probe: Callable[[VolumeConfig], Awaitable[str]]
    """Tries it; why it cannot be had, or nothing."""
    enforcement: Enforcement
    fix: str = ""
    automatic: bool = True
    """Whether ``auto`` may take it: those in memory lose a session's files with the worker."""


async def _always(_: VolumeConfig) -> str:
    return ""


_KERNEL = Enforcement.KERNEL
KINDS: Mapping[str, Kind] = {
    "loop": Kind(LoopDriver, loop.probe, _KERNEL, loop.FIX),
    "reflink": Kind(reflink.ReflinkDriver, reflink.probe, _KERNEL, reflink.FIX),
    "project": Kind(project.ProjectDriver, project.probe, _KERNEL, project.FIX),
    "overlay": Kind(overlay.OverlayDriver, overlay.probe, _KERNEL, memory.FIX, automatic=False),
    "tmpfs": Kind(tmpfs.TmpfsDriver, tmpfs.probe, _KERNEL, memory.FIX, automatic=False),
    "plain": Kind(PlainDriver, _always, Enforcement.WORKER),
}
"""Strongest first. Only loop reserves what it promises; a quota does not."""


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
    found = []
    for name, kind in KINDS.items():
        reason = await kind.probe(config)
        fix = kind.fix if reason else ""
        found.append(
            VolumeProbe(
                name=name,
                available=not reason,
                enforcement=kind.enforcement,
                reason=reason,
                fix=fix,
            )
        )
    return found


async def choose(kind: str, config: VolumeConfig) -> tuple[Volumes, list[VolumeProbe]]:
    """Pick a kind: the one that was asked for, or with ``auto`` the strongest there is.

    Raises:
        Unavailable: The one that was asked for cannot be had here.
    """
    probes = await probe(config)
    found = {result.name: result for result in probes}
    if kind == "auto":
        kind = next(
            result.name for result in probes if result.available and KINDS[result.name].automatic
        )
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
        self._drivers = {name: kind.driver(config) for name, kind in KINDS.items()}
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
            kind = str(read_record(directory)["kind"])
            if kind not in self._drivers:
                raise Corrupt(f"{str(directory)!r} holds a volume of kind {kind!r}, unknown here")
            return await self._drivers[kind].adopt(directory, identity)
        raise Corrupt(f"{str(directory)!r} holds no volume")

    def free_bytes(self) -> int:
        """Room left for promises."""
        return self._chosen.free_bytes()
