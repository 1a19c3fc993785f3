"""Makes and takes apart what one session occupies on the host. Knows interfaces only."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import structlog

from codegen_mcp.core.errors import SandboxUnavailable, WorkerError
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.engine.hooks import EngineHooks, NoHooks
from codegen_mcp.engine.interpreter_catalog import InterpreterCatalog
from codegen_mcp.engine.ports import IdentityLeaser
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.engine.slot import Slot
from codegen_mcp.sandbox.base import HostIdentity, Sandbox, SandboxBackend, SandboxSpec
from codegen_mcp.sandbox.cgroup import Cgroup, CgroupDriver
from codegen_mcp.sandbox.volumes.base import VolumeDriver
from codegen_mcp.sandbox.volumes.threads import to_end

log = structlog.get_logger()

REMOVE_TRIES = 50
REMOVE_PAUSE_S = 0.02
"""The kernel lets a control group go a moment after its last process was reaped."""


class SandboxEgress(Protocol):
    """The worker's way out, as far as a sandbox has to be booted for it."""

    def equip(self, spec: SandboxSpec, directory: Path) -> SandboxSpec:
        """Add what a sandbox needs for it; ``directory`` is its slot's."""


class SlotFactory:
    """Leases, limits, mounts and boots, in this order; undoes all of it when a step fails."""

    def __init__(
        self,
        *,
        backend: SandboxBackend,
        volumes: VolumeDriver,
        cgroups: CgroupDriver | None,
        identities: IdentityLeaser,
        catalog: InterpreterCatalog,
        hooks: EngineHooks | None = None,
        egress: SandboxEgress | None = None,
    ) -> None:
        self._egress = egress
        self._backend = backend
        self._volumes = volumes
        self._cgroups = cgroups
        self._identities = identities
        self._catalog = catalog
        self._hooks = hooks or NoHooks()

    async def make(
        self, directory: Path, interpreter: Interpreter, limits: ResourceLimits, env: dict[str, str]
    ) -> Slot:
        """Fill the empty ``directory`` with a booted slot.

        Raises:
            Full: No disk or host user is left.
            SandboxUnavailable: It could not be booted.
        """
        async with AsyncExitStack() as undo:
            identity = self._identities.lease()
            if identity is not None:
                undo.push_async_callback(self._identities.release, identity)
            volume = await self._volumes.create(directory, limits.disk_bytes, identity)
            undo.push_async_callback(volume.detach)
            cgroup = self._make_cgroup(limits)
            if cgroup is not None:
                undo.push_async_callback(remove_cgroup, cgroup)
            language = self._catalog.language(interpreter)
            venv = volume.root / "venv"
            await to_end(lambda: language.make_environment(interpreter, venv, identity))
            slot = Slot(
                directory=directory,
                interpreter=interpreter,
                limits=limits,
                volume=volume,
                identity=identity,
                cgroup=cgroup,
                env=env,
            )
            slot.sandbox = await self.boot(slot)
            undo.pop_all()
            return slot

    async def clone(self, directory: Path, source: Slot) -> Slot:
        """Fill the empty ``directory`` with the files of a slot; no sandbox is booted yet.

        What has a name in the source must not change meanwhile.

        Raises:
            Full: No disk or host user is left.
        """
        async with AsyncExitStack() as undo:
            identity = self._identities.lease()
            if identity is not None:
                undo.push_async_callback(self._identities.release, identity)
            size_bytes = source.limits.disk_bytes
            volume = await self._volumes.clone(source.volume, directory, size_bytes, identity)
            undo.push_async_callback(volume.detach)
            cgroup = self._make_cgroup(source.limits)
            undo.pop_all()
            return Slot(
                directory=directory,
                interpreter=source.interpreter,
                limits=source.limits,
                volume=volume,
                identity=identity,
                cgroup=cgroup,
                env=dict(source.env),
            )

    def claim(self, identity: HostIdentity | None) -> HostIdentity | None:
        """Take a dead session's host user again; None when it cannot be had."""
        if identity is not None and self._identities.claim(identity):
            return identity
        return None

    async def adopt(
        self, directory: Path, record: SessionRecord, claimed: HostIdentity | None
    ) -> Slot:
        """Attach what a dead worker left in ``directory``; no sandbox is booted yet.

        Args:
            directory: At its final place.
            record: What is known of the session.
            claimed: Its host user, when it could be had again; stays the caller's on an error.

        Raises:
            InvalidRequest: Its interpreter is not there any more.
            Corrupt: Its volume cannot be attached.
            Full: No host user is left.
        """
        interpreter = self._catalog.resolve(record.interpreter)
        async with AsyncExitStack() as undo:
            identity = claimed
            if identity is None:
                identity = self._identities.lease()
            if identity is not None and identity != claimed:
                undo.push_async_callback(self._identities.release, identity)
            volume = await self._volumes.adopt(directory, identity)
            undo.push_async_callback(volume.detach)
            cgroup = self._make_cgroup(record.limits)
            undo.pop_all()
            return Slot(
                directory=directory,
                interpreter=interpreter,
                limits=record.limits,
                volume=volume,
                identity=identity,
                cgroup=cgroup,
                env=dict(record.env),
            )

    async def boot(self, slot: Slot) -> Sandbox:
        """Boot a sandbox in a slot that has none; the slot keeps everything else.

        Raises:
            SandboxUnavailable: It could not be started; nothing of it is left.
        """
        started = time.monotonic()
        language = self._catalog.language(slot.interpreter)
        spec = SandboxSpec(
            sandbox_id=secrets.token_hex(8),
            volume=slot.volume,
            interpreter=slot.interpreter,
            limits=slot.limits,
            identity=slot.identity,
            cgroup=slot.cgroup,
            env=slot.env,
            read_only=language.read_only_mounts(),
            image=slot.interpreter.image,
        )
        if self._egress is not None:
            spec = self._egress.equip(spec, slot.directory)
        try:
            sandbox = await self._backend.create(spec)
        except WorkerError:
            self._hooks.boot_failed()
            raise
        except Exception as error:
            self._hooks.boot_failed()
            log.exception("sandbox.boot_failed", backend=self._backend.name)
            raise SandboxUnavailable(
                f"backend {self._backend.name!r} could not start a sandbox "
                f"({type(error).__name__}); run 'codegen-mcp doctor' to see what is missing"
            ) from error
        slot.cpu_us = sandbox.usage().cpu_us
        self._hooks.sandbox_booted(seconds=time.monotonic() - started)
        return sandbox

    async def dismantle(self, slot: Slot) -> bool:
        """Give back everything but the files and the host user.

        Returns whether the control group is gone; never raises.
        """
        if slot.sandbox is not None:
            await slot.sandbox.aclose()
            slot.sandbox = None
        try:
            await slot.volume.detach()
        except Exception:
            log.exception("slot.detach_failed", directory=str(slot.directory))
        if slot.cgroup is not None and await remove_cgroup(slot.cgroup):
            slot.cgroup = None
        return slot.cgroup is None

    async def release(self, identity: HostIdentity | None) -> None:
        """Give back a host user, once no file of it is left."""
        if identity is not None:
            await self._identities.release(identity)

    def free_bytes(self) -> int:
        """Disk that can still be promised."""
        return self._volumes.free_bytes()

    def footprint(self, limits: ResourceLimits) -> int:
        """Return what a slot with these limits takes from ``free_bytes``."""
        return self._volumes.footprint(limits.disk_bytes)

    def _make_cgroup(self, limits: ResourceLimits) -> Cgroup | None:
        # In the loop: well under a millisecond, and what a thread makes could be lost to a cancel.
        return None if self._cgroups is None else _limited_cgroup(self._cgroups, limits)


def _limited_cgroup(driver: CgroupDriver, limits: ResourceLimits) -> Cgroup:
    try:
        cgroup = driver.create("s" + secrets.token_hex(8))
    except OSError as error:
        raise SandboxUnavailable(
            f"the kernel refused a control group ({error.strerror}); sessions cannot be limited"
        ) from error
    try:
        cgroup.set_limits(limits)
    except OSError as error:
        cgroup.remove()
        raise SandboxUnavailable(
            f"the kernel refused the limits of a control group ({error.strerror})"
        ) from error
    return cgroup


async def remove_cgroup(cgroup: Cgroup) -> bool:
    """Remove an empty group; False when the kernel still holds it after a second."""
    for _ in range(REMOVE_TRIES):
        try:
            if cgroup.remove():
                return True
        except OSError:
            log.exception("cgroup.remove_failed")
            return False
        await asyncio.sleep(REMOVE_PAUSE_S)
    return False
