"""Finds a container engine: a socket that is there, or a Podman of our own.

Podman needs no service; where none listens, the worker starts one for itself, which ends with it
(prctl(2), PR_SET_PDEATHSIG by way of setpriv(1)).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import stat
import subprocess
import weakref
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox.container_api import ContainerApi
from codegen_mcp.sandbox.launcher import ENVIRONMENT, ErrorPipe, Spawner

SEARCHED = "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"
_START_TRIES, _START_WAIT_S = 200, 0.05


@dataclass(frozen=True, slots=True)
class Engine:
    """What was found."""

    api: ContainerApi
    version: str
    errors: ErrorPipe | None = None
    """Where a Podman of our own complains: one whose standard error is closed ends."""


async def find_engine(directory: Path, spawner: Spawner) -> Engine:
    """Return an engine that answers.

    Looked for at CONTAINER_HOST and DOCKER_HOST (``unix://`` only), then where Podman and Docker
    listen for this user; then Podman is started.

    Args:
        directory: For the socket of a Podman of our own.
        spawner: Starts it; whoever holds it keeps it running.

    Raises:
        SandboxUnavailable: There is none, or it does not answer.
    """
    for path in _sockets():
        if _is_socket(path):
            return await _ask(ContainerApi(path))
    podman = shutil.which("podman", path=SEARCHED)
    if podman is None:
        raise SandboxUnavailable("no container engine: podman is not installed, no socket is there")
    return await _start(podman, directory, spawner)


def _sockets() -> list[str]:
    named = [os.environ.get(name, "") for name in ("CONTAINER_HOST", "DOCKER_HOST")]
    paths = [one.removeprefix("unix://") for one in named if one.startswith("unix://")]
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    own = ["/run/podman/podman.sock", "/run/docker.sock", "/var/run/docker.sock"]
    if os.geteuid() != 0:
        own = [f"{runtime}/podman/podman.sock", f"{runtime}/docker.sock"]
    return [*paths, *own]


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode) and os.access(path, os.W_OK)
    except OSError:
        return False


async def _ask(api: ContainerApi) -> Engine:
    answer = await api.call("GET", "/version")
    parts = answer.get("Components") or [{}]
    name = str(parts[0].get("Name", "")).removesuffix(" Engine").lower() or "engine"
    return Engine(api, f"{name.split()[0]}-{answer.get('Version', '')}")


async def _start(podman: str, directory: Path, spawner: Spawner) -> Engine:
    path = directory / "podman.sock"
    path.unlink(missing_ok=True)
    errors = ErrorPipe()
    try:
        process = await spawner.spawn(
            [
                *("/usr/bin/setpriv", "--pdeathsig", "KILL", podman, *_runtime()),
                *("system", "service", "--time=0", f"unix://{path}"),
            ],
            pass_fds=(),
            stderr=errors.write_end,
            env={**ENVIRONMENT, "PATH": SEARCHED, **_own_places()},
        )
        weakref.finalize(spawner, _end, process)
        for _ in range(_START_TRIES):
            if _is_socket(str(path)):
                found = await _ask(ContainerApi(str(path)))
                errors.close_write_end()
                return dataclasses.replace(found, errors=errors)
            if process.poll() is not None:
                break
            await asyncio.sleep(_START_WAIT_S)
        raise SandboxUnavailable(f"podman does not serve: {errors.text() or 'no word from it'}")
    except BaseException:
        errors.close()
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _own_places() -> dict[str, str]:
    names = ("HOME", "XDG_RUNTIME_DIR", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF")
    return {name: os.environ[name] for name in names if name in os.environ}


def _runtime() -> list[str]:
    """Runc where control groups are of version 1 or mixed: crun refuses to start there."""
    pure = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    runc = shutil.which("runc", path=SEARCHED)
    return [] if pure or runc is None else ["--runtime", runc]
