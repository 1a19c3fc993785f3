"""A sandbox as a container: what the engine is told."""

from __future__ import annotations

import resource
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox import base
from codegen_mcp.sandbox.base import HostIdentity, SandboxSpec
from codegen_mcp.sandbox.guest_protocol import GUEST_ENV
from codegen_mcp.sandbox.gvisor_bundle import entry_argv, read_only_binds

CONTROL = "/run/codegen/control"
"""Directory inside with the socket that the guest connects to."""
SOCKET = "s"
LABEL = "codegen-mcp.state"
"""Names the worker whose container it is."""
_HOST_TASKS = 64
"""Above the session's limit, which its control group and RLIMIT_NPROC hold."""


def container_body(
    spec: SandboxSpec, image: str, *, user: HostIdentity, guest: Path, control: Path, label: str
) -> dict[str, object]:
    """Return the body of ``POST /containers/create``.

    Args:
        spec: The sandbox.
        image: Name of one that the engine has.
        user: User and group inside; the same as outside.
        guest: Host directory of the guest's program.
        control: Host directory with the control socket.
        label: Value of LABEL.

    Raises:
        SandboxUnavailable: Something to be mounted is missing.
    """
    limits = spec.limits
    tmp = f"rw,nosuid,nodev,size={limits.tmp_bytes},mode=1777"
    return {
        "Image": image,
        "Entrypoint": [],
        "Cmd": entry_argv(spec, f"{CONTROL}/{SOCKET}"),
        "User": f"{user.uid}:{user.gid}",
        "Env": [f"{name}={value}" for name, value in GUEST_ENV.items()],
        "WorkingDir": "/",
        "Hostname": "sandbox",
        "Labels": {LABEL: label},
        "NetworkDisabled": True,
        "HostConfig": {
            "Mounts": _mounts(spec, guest, control),
            "Tmpfs": {"/tmp": tmp},
            "ShmSize": limits.tmp_bytes,
            "NetworkMode": "none",
            "IpcMode": "private",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Memory": limits.memory_bytes,
            "MemorySwap": limits.memory_bytes,
            "PidsLimit": limits.pids + _HOST_TASKS,
            "NanoCpus": limits.cpu_millicores * 1_000_000,
            "Ulimits": _ulimits(limits.open_files),
            "LogConfig": {"Type": "none"},
            "OomScoreAdj": 500,
        },
    }


def _mounts(spec: SandboxSpec, guest: Path, control: Path) -> list[dict[str, object]]:
    """What to bind; checked first, because some engines make what is missing on the host, as root.

    Raises:
        SandboxUnavailable: Something is missing.
    """
    sources = {**read_only_binds(spec, guest), CONTROL: control}
    for source in sources.values():
        if not source.exists():
            raise SandboxUnavailable(f"the launcher failed: {str(source)!r} does not exist")
    mounts: list[dict[str, object]] = [
        {"Type": "bind", "Source": str(sources[inside]), "Target": inside, "ReadOnly": True}
        for inside in sorted(sources)
    ]
    for inside, part in ((base.WORKSPACE, "workspace"), (base.VENV, "venv")):
        own = str(spec.volume.root / part)
        mounts.append({"Type": "bind", "Source": own, "Target": inside, "ReadOnly": False})
    return mounts


def _ulimits(open_files: int) -> list[dict[str, object]]:
    """Named here: an engine's defaults may be above what the worker itself may raise."""
    found: list[dict[str, object]] = []
    for name, which, wanted in (
        ("nofile", resource.RLIMIT_NOFILE, open_files),
        ("nproc", resource.RLIMIT_NPROC, 4096),
    ):
        hard = resource.getrlimit(which)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        found.append({"Name": name, "Soft": value, "Hard": value})
    return found
