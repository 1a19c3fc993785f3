"""The container backend: an image of the operator's choice, by Podman or Docker.

The engine is asked over its API (``container_api.py``). The root is read-only, there are no
capabilities, no new privileges and no network; the process inside is the session's host user, in
the session's control group, behind the filter that bubblewrap's sandboxes have. An image is never
pulled: it must be there, with the interpreter at the path where the worker's own is.

Who may speak to the engine's socket is root on this host: only the worker may.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import (
    Enforcement,
    HostIdentity,
    IsolationLevel,
    Probe,
    Sandbox,
    SandboxSpec,
)
from codegen_mcp.sandbox.container_api import ContainerApi
from codegen_mcp.sandbox.container_engine import Engine, find_engine
from codegen_mcp.sandbox.container_guest import (
    CONNECT_TIMEOUT_S,
    ContainerGuest,
    Entrance,
    remove,
)
from codegen_mcp.sandbox.container_spec import LABEL, container_body
from codegen_mcp.sandbox.guest_sandbox import GuestSandbox
from codegen_mcp.sandbox.launcher import Spawner, outlast
from codegen_mcp.sandbox.preconditions import check_directories, check_identity
from codegen_mcp.sandbox.probe import enforcement, self_test

_LOOK_S = 0.5
"""Between looks at a container whose guest has not connected yet."""


class ContainerBackend:
    """Boots sandboxes as containers.

    Args:
        config: Facts of the worker; ``container_image`` is what sessions get that name none.
    """

    name = IsolationLevel.CONTAINER.value
    carries_images = True
    carries_egress = True

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        self._spawner: Spawner | None = None
        self._engine: Engine | None = None
        self._directory = config.state / "containers"
        self._label = hashlib.sha256(os.fsencode(config.state)).hexdigest()[:32]
        self._finding = asyncio.Lock()

    async def probe(self) -> Probe:
        """Boot one and try its walls from inside."""
        version = ""
        with contextlib.suppress(SandboxUnavailable):  # the self-test says it again
            version = (await self._find()).version
        strong = dict.fromkeys(
            ("filesystem", "network", "processes", "syscalls", "memory", "pids", "cpu"),
            Enforcement.KERNEL,
        )
        enforces = enforcement(self._config, strong)
        return await self_test(
            self, self._config, IsolationLevel.CONTAINER, enforces, version=version
        )

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Boot a sandbox."""
        check_identity(spec.identity)
        check_directories(spec)
        image = spec.image or self._config.container_image
        if not image:
            raise SandboxUnavailable(
                "no image is named; set CONTAINER_IMAGE to one that the container engine has"
            )
        api = (await self._find()).api
        booting = asyncio.ensure_future(self._boot(spec, image, api))
        cancelled = await outlast(booting)
        sandbox = booting.result()
        if cancelled:
            await sandbox.aclose()
            raise asyncio.CancelledError
        return sandbox

    async def _boot(self, spec: SandboxSpec, image: str, api: ContainerApi) -> Sandbox:
        user = spec.identity or HostIdentity(uid=os.geteuid(), gid=os.getegid())
        entrance = Entrance(self._directory / secrets.token_hex(8), user)
        try:
            body = container_body(
                spec,
                image,
                user=user,
                guest=self._config.guest_directory,
                control=entrance.directory,
                label=self._label,
            )
            made = await api.call(
                "POST", "/containers/create", {"name": f"codegen-{secrets.token_hex(8)}"}, body
            )
            container_id = str(made["Id"])
            guest: ContainerGuest | None = None
            try:
                await self._start(api, container_id)
                guest = await self._meet(entrance, spec, api, container_id)
                await guest.admit()
                return await GuestSandbox.boot(guest, spec)
            except BaseException:
                if guest is not None:
                    guest.kill()
                    await guest.wait()
                else:
                    await remove(api, container_id)
                raise
        finally:
            entrance.close()

    async def _start(self, api: ContainerApi, container_id: str) -> None:
        try:
            await api.call("POST", f"/containers/{container_id}/start")
        except SandboxUnavailable as error:
            raise SandboxUnavailable(f"the launcher failed: {error.message}") from error

    async def _meet(
        self, entrance: Entrance, spec: SandboxSpec, api: ContainerApi, container_id: str
    ) -> ContainerGuest:
        """Wait for the guest, or for the container's early end, with what it said."""
        accepting = asyncio.ensure_future(entrance.accept())
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                while not accepting.done():
                    await asyncio.wait({accepting}, timeout=_LOOK_S)
                    if not accepting.done():
                        await self._check_running(api, container_id, spec)
            connection, pid = accepting.result()
        except TimeoutError:
            raise SandboxUnavailable(
                f"the launcher failed: the container said nothing in {CONNECT_TIMEOUT_S:.0f} s"
            ) from None
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
        return ContainerGuest(connection, pid, spec, api, container_id)

    async def _check_running(self, api: ContainerApi, container_id: str, spec: SandboxSpec) -> None:
        state = (await api.call("GET", f"/containers/{container_id}/json"))["State"]
        if not state.get("Running"):
            raise SandboxUnavailable(
                f"the launcher failed: the container ended with {state.get('ExitCode')}; does the "
                f"image have {str(spec.interpreter.executable)!r}?"
            )

    async def _find(self) -> Engine:
        async with self._finding:
            if self._engine is None:
                self._directory.mkdir(mode=0o711, exist_ok=True)
                os.chmod(self._directory, 0o711)
                self._spawner = self._spawner or Spawner()
                engine = await find_engine(self._directory, self._spawner)
                await self._sweep(engine.api)
                self._engine = engine
            return self._engine

    async def _sweep(self, api: ContainerApi) -> None:
        """Remove the containers of a worker that was killed on this state directory."""
        chosen = f'{{"label": ["{LABEL}={self._label}"]}}'
        for one in await api.call("GET", "/containers/json", {"all": "true", "filters": chosen}):
            await remove(api, str(one["Id"]))
        for left in self._directory.iterdir():
            if left.is_dir():
                await asyncio.to_thread(_remove_entrance, left)


def _remove_entrance(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink(missing_ok=True)
    directory.rmdir()
