"""What a host lends to sessions, kept in counters: volumes, control groups, host users, a language.

Volumes are real directories without a quota, so that files can be looked at; everything else is
bookkeeping that tells a test what was not given back.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from codegen_mcp.core.errors import Corrupt, Full
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import GIB, ResourceLimits
from codegen_mcp.languages.base import (
    CaptureRun,
    Installer,
    InstallRequest,
    InstallResult,
    Progress,
)
from codegen_mcp.sandbox.base import Enforcement, HostIdentity
from codegen_mcp.sandbox.cgroup import CgroupCounters, RunGroups
from codegen_mcp.sandbox.volumes.base import Volume, VolumeUsage


class MemoryVolume:
    """A plain directory that counts against its driver's room until it is detached."""

    def __init__(self, driver: MemoryVolumes, directory: Path, size_bytes: int) -> None:
        self._driver = driver
        self._directory = directory
        self.size_bytes = size_bytes

    @property
    def root(self) -> Path:
        """Holds ``workspace/`` and ``venv/``."""
        return self._directory / "volume"

    def moved(self, directory: Path) -> None:
        """Follow."""
        self._directory = directory

    def usage(self) -> VolumeUsage:
        """Count nothing."""
        return VolumeUsage(used_bytes=0, size_bytes=self.size_bytes, full=False)

    def abandon(self) -> None:
        """Keep what is there."""

    async def detach(self) -> None:
        """Give its size back."""
        self._driver.attached.discard(self)


class MemoryVolumes:
    """Implements VolumeDriver."""

    def __init__(self, room_bytes: int = 1024 * GIB) -> None:
        self._room_bytes = room_bytes
        self.attached: set[MemoryVolume] = set()

    @property
    def name(self) -> str:
        """``memory``."""
        return "memory"

    @property
    def enforcement(self) -> Enforcement:
        """Nobody."""
        return Enforcement.NONE

    async def create(
        self, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> MemoryVolume:
        """Make the two directories."""
        if size_bytes > self.free_bytes():
            raise Full(f"no room for {size_bytes} bytes", reason="DISK_FULL", retry_after_s=5.0)
        for name in ("workspace", "venv"):
            (directory / "volume" / name).mkdir(parents=True)
        return self._attach(directory, size_bytes)

    async def clone(
        self, source: Volume, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> MemoryVolume:
        """Copy the directories."""
        if size_bytes > self.free_bytes():
            raise Full(f"no room for {size_bytes} bytes", reason="DISK_FULL", retry_after_s=5.0)
        shutil.copytree(source.root, directory / "volume", symlinks=True)
        return self._attach(directory, size_bytes)

    def footprint(self, size_bytes: int) -> int:
        """Just that."""
        return size_bytes

    async def adopt(self, directory: Path, identity: HostIdentity | None) -> MemoryVolume:
        """Take over the directories."""
        if not (directory / "volume" / "workspace").is_dir():
            raise Corrupt(f"{str(directory)!r} holds no volume")
        return self._attach(directory, 0)

    def free_bytes(self) -> int:
        """Room minus what is attached."""
        return self._room_bytes - sum(volume.size_bytes for volume in self.attached)

    def _attach(self, directory: Path, size_bytes: int) -> MemoryVolume:
        volume = MemoryVolume(self, directory, size_bytes)
        self.attached.add(volume)
        return volume


class MemoryCgroup:
    """Remembers its limits."""

    controllers: frozenset[str] = frozenset()
    attach_files: Sequence[Path] = ()
    runs: RunGroups | None = None

    def __init__(self, driver: MemoryCgroups, name: str) -> None:
        self._driver = driver
        self.name = name
        self.limits: ResourceLimits | None = None

    def set_limits(self, limits: ResourceLimits) -> None:
        """Keep them."""
        self.limits = limits

    def set_memory(self, memory_bytes: int) -> bool:
        """Accept it."""
        return True

    def reset_peak(self) -> None:
        """There is none."""

    def read(self) -> CgroupCounters:
        """All zero."""
        return CgroupCounters()

    def pids(self) -> list[int]:
        """There are none."""
        return []

    def kill(self) -> None:
        """There is nobody."""

    def freeze(self, within_s: float = 0.1) -> bool:
        """There is no freezer."""
        return False

    def thaw(self) -> None:
        """There is no freezer."""

    def rename(self, name: str) -> None:
        """Keep it."""
        self.name = name

    def remove(self) -> bool:
        """Busy as often as the driver says, then gone."""
        if self._driver.busy:
            self._driver.busy -= 1
            return False
        self._driver.groups.discard(self)
        return True


class MemoryCgroups:
    """Implements CgroupDriver."""

    version = 2
    controllers: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.groups: set[MemoryCgroup] = set()
        self.busy = 0
        """How many removals fail."""

    def create(self, name: str) -> MemoryCgroup:
        """Make one."""
        group = MemoryCgroup(self, name)
        self.groups.add(group)
        return group

    def remove_stale(self) -> list[str]:
        """There are none."""
        return []

    def close(self) -> None:
        """Nothing to remove."""


class MemoryIdentities:
    """Leases uids from a range; implements the engine's IdentityLeaser."""

    def __init__(self, first: int = 200_000, count: int = 1000) -> None:
        self._range = range(first, first + count)
        self.leased: set[int] = set()

    def lease(self, *, own: bool = False) -> HostIdentity | None:
        """Take the first free one."""
        for uid in self._range:
            if uid not in self.leased:
                self.leased.add(uid)
                return HostIdentity(uid=uid, gid=uid)
        raise Full("no host user is left", reason="NO_IDENTITY", retry_after_s=5.0)

    def claim(self, identity: HostIdentity) -> bool:
        """Take this one."""
        if identity.uid in self.leased or identity.uid not in self._range:
            return False
        self.leased.add(identity.uid)
        return True

    async def release(self, identity: HostIdentity) -> None:
        """Give it back; KeyError for one that was not leased."""
        self.leased.remove(identity.uid)


class MemoryInstaller:
    """Installs nothing."""

    async def install(
        self,
        request: InstallRequest,
        *,
        interpreter: Interpreter,
        venv: Path,
        run: CaptureRun,
        progress: Progress,
        env: Mapping[str, str],
        timeout_s: float,
    ) -> InstallResult:
        """Answer that all is there."""
        return InstallResult(installed=(), failed=(), output="", exit_code=0)


class MemoryLanguage:
    """A language whose environments are empty directories."""

    name = "python"
    installer: Installer = MemoryInstaller()

    def __init__(self, *versions: str) -> None:
        self.interpreters = tuple(memory_interpreter(one) for one in versions or ("3.11", "3.12"))

    async def discover(self) -> Sequence[Interpreter]:
        """Return what it was made with."""
        return self.interpreters

    def make_environment(
        self, interpreter: Interpreter, venv: Path, identity: HostIdentity | None
    ) -> None:
        """Leave a mark."""
        (venv / "interpreter").write_text(interpreter.name, encoding="utf-8")

    def close(self) -> None:
        """Nothing was mounted."""

    def read_only_mounts(self) -> Mapping[str, Path]:
        """Return none."""
        return {}


def memory_interpreter(version: str) -> Interpreter:
    """Describe an interpreter that is not there."""
    return Interpreter(
        language="python",
        name=f"python{version}",
        version=f"{version}.0",
        executable=Path(f"/usr/bin/python{version}"),
        trees=(),
        site_packages=f"lib/python{version}/site-packages",
        template=Path("/nonexistent"),
    )
