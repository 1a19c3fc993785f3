"""Makes the sandboxes that are attacked: a directory, a volume, a control group, small limits."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import HostIdentity, Sandbox, SandboxBackend, SandboxSpec
from codegen_mcp.sandbox.cgroup import Cgroup
from codegen_mcp.sandbox.volumes.base import Volume, VolumeUsage
from codegen_mcp.sandbox.volumes.layout import ROOT, populate

LIMITS = ResourceLimits(
    memory_bytes=192 * MIB,
    disk_bytes=64 * MIB,
    pids=64,
    file_size_bytes=256 * MIB,
    tmp_bytes=32 * MIB,
    output_bytes=1 * MIB,
    open_files=256,
)
"""Small, so that bombs end soon."""
_TRIES = 100


class _Directory:
    """A volume without a limit."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / ROOT

    def moved(self, directory: Path) -> None:
        self.root = directory / ROOT

    def usage(self) -> VolumeUsage:
        return VolumeUsage(used_bytes=0, size_bytes=0, full=False)

    def abandon(self) -> None:
        pass

    async def detach(self) -> None:
        pass


class Place:
    """What one sandbox occupies: it can be booted again and again on the same files."""

    def __init__(
        self, backend: SandboxBackend, spec: SandboxSpec, directory: Path, sandbox: Sandbox
    ) -> None:
        self.spec = spec
        self.sandbox = sandbox
        self._backend = backend
        self._directory = directory

    async def reboot(self) -> None:
        """End the sandbox, and boot another in its place."""
        await self.sandbox.aclose()
        self.sandbox = await self._backend.create(self.spec)

    async def remove(self) -> None:
        """End the sandbox and remove everything of it."""
        await self.sandbox.aclose()
        await release(self.spec, self._directory)


class Bed:
    """A directory below the state directory in which places are made; removed when left.

    Args:
        backend: Boots the sandboxes.
        config: Facts of the worker.
        with_volumes: Use the worker's kind of volume, not a plain directory.
    """

    def __init__(
        self, backend: SandboxBackend, config: BackendConfig, *, with_volumes: bool = True
    ) -> None:
        self._backend = backend
        self._config = config
        self._volumes = config.volumes if with_volumes else None
        self.directory = config.state / f"selftest-{secrets.token_hex(8)}"
        self._places: list[Place] = []

    async def __aenter__(self) -> Self:
        self.directory.mkdir(mode=0o711)
        os.chmod(self.directory, 0o711)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for place in reversed(self._places):
            await place.remove()
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    async def place(self, identity: HostIdentity | None, limits: ResourceLimits = LIMITS) -> Place:
        """Boot a sandbox on a new directory.

        Raises:
            SandboxUnavailable: It cannot be booted.
        """
        name = secrets.token_hex(8)
        directory = self.directory / name
        directory.mkdir(mode=0o711)
        os.chmod(directory, 0o711)
        volume = await self._volume(directory, identity, limits)
        cgroup = self._cgroup(name, limits)
        spec = SandboxSpec(
            sandbox_id=name,
            volume=volume,
            interpreter=self._config.interpreter,
            limits=limits,
            identity=identity,
            cgroup=cgroup,
        )
        try:
            _write_environment(spec)
            place = Place(self._backend, spec, directory, await self._backend.create(spec))
        except BaseException:
            await release(spec, directory)
            raise
        self._places.append(place)
        return place

    async def _volume(
        self, directory: Path, identity: HostIdentity | None, limits: ResourceLimits
    ) -> Volume:
        if self._volumes is not None:
            return await self._volumes.create(directory, limits.disk_bytes, identity)
        plain = _Directory(directory)
        plain.root.mkdir()
        populate(plain.root, identity)
        return plain

    def _cgroup(self, name: str, limits: ResourceLimits) -> Cgroup | None:
        if self._config.cgroups is None:
            return None
        cgroup = self._config.cgroups.create(name)
        cgroup.set_limits(limits)
        return cgroup


async def release(spec: SandboxSpec, directory: Path) -> None:
    """Remove what a spec holds: volume, files and control group."""
    await spec.volume.detach()
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    if spec.cgroup is not None:
        for _ in range(_TRIES):
            if spec.cgroup.remove():
                return
            await asyncio.sleep(0.01)


def _write_environment(spec: SandboxSpec) -> None:
    """The least that makes /venv an environment: configuration, interpreter, site-packages."""
    venv = spec.volume.root / "venv"
    site = venv / spec.interpreter.site_packages
    site.mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(spec.interpreter.executable)
    config = f"home = {spec.interpreter.executable.parent}\nversion = {spec.interpreter.version}\n"
    (venv / "pyvenv.cfg").write_text(config)
    if spec.identity is not None:
        for path in (venv, *venv.rglob("*")):
            os.chown(path, spec.identity.uid, spec.identity.gid, follow_symlinks=False)
