"""A sandbox as an OCI bundle: what runsc is told (OCI runtime specification, config.md).

runsc runs as the session's user without any privilege of the host (``--rootless``). Only that one
user of the host can be had inside, and there it is called 0. Code of the session is that user, so
that files are its own, in a user namespace of gVisor's own kernel that calls it 1000; the guest is
a user that the host does not have (``guest/users.py``). Who breaks out of gVisor's kernel is the
session's user in empty namespaces, behind gVisor's own seccomp filter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from codegen_mcp.sandbox import base
from codegen_mcp.sandbox.base import SandboxSpec
from codegen_mcp.sandbox.bubblewrap_args import GUEST_CAPABILITIES, UID
from codegen_mcp.sandbox.guest_protocol import GUEST_ENV, guest_argv
from codegen_mcp.sandbox.gvisor_rootfs import system_directories
from codegen_mcp.sandbox.run_environment import base_environment

CONTROL = 100
"""The guest's control descriptor: well above what an interpreter opens for itself."""
_GUEST_UID = 1
_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
_READ_ONLY = ("ro", "rbind", "nosuid", "nodev")
_WRITABLE = ("rw", "rbind", "nosuid", "nodev")


def write_bundle(directory: Path, spec: SandboxSpec, *, rootfs: Path, guest: Path) -> None:
    """Write ``config.json``.

    Args:
        directory: Of the bundle.
        spec: The sandbox.
        rootfs: From ``make_rootfs``, with every mount point.
        guest: Host directory of the guest's program.
    """
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": entry_argv(spec, "stdin", run_as=(0, UID, _GUEST_UID), relay=True),
            "env": [f"{name}={value}" for name, value in GUEST_ENV.items()],
            "cwd": "/",
            "capabilities": {name: list(GUEST_CAPABILITIES) for name in _SETS},
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "sandbox",
        "mounts": _mounts(spec, guest),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        },
    }
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    path.chmod(0o644)


def mount_points(spec: SandboxSpec) -> Sequence[Path | str]:
    """Places beside the usual ones that something is mounted on."""
    return [*spec.interpreter.trees, *spec.read_only]


def entry_argv(
    spec: SandboxSpec,
    control: str,
    *,
    run_as: tuple[int, int, int] | None = None,
    relay: bool = False,
) -> list[str]:
    """Return the arguments that become the guest by way of ``guest/enter.py``.

    Args:
        spec: The sandbox.
        control: ``stdin``, or the path of a socket.
        run_as: User of the session's code, what it calls itself, and the guest's own; None: one.
        relay: Whether the guest cannot send descriptors.
    """
    argv = guest_argv(
        control_fd=CONTROL,
        site_packages=spec.interpreter.site_packages,
        run_as=run_as,
        relay=relay,
        egress_port=spec.egress_port,
        env=base_environment(spec.interpreter, spec.limits),
    )
    enter = [argv[0], "-I", "-S", f"{base.GUEST}/enter.py", control, str(CONTROL)]
    return [*enter, *argv]


def read_only_binds(spec: SandboxSpec, guest: Path) -> Mapping[str, Path]:
    """Path inside to host path of what every sandbox sees beside its volume and the system."""
    sources = dict(spec.interpreter.sources)
    binds = {str(tree): sources.get(tree, tree) for tree in spec.interpreter.trees}
    binds |= {base.GUEST: guest, base.TEMPLATE: spec.interpreter.template}
    binds |= spec.read_only
    return binds


def _mounts(spec: SandboxSpec, guest: Path) -> list[dict[str, object]]:
    tmp = [f"size={spec.limits.tmp_bytes}", "mode=1777", "nosuid", "nodev"]
    mounts: list[dict[str, object]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": tmp},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": tmp},
        *(_bind(path, Path(path), _READ_ONLY) for path in system_directories()),
    ]
    binds = read_only_binds(spec, guest)
    mounts += [_bind(inside, binds[inside], _READ_ONLY) for inside in sorted(binds)]
    for inside, part in ((base.WORKSPACE, "workspace"), (base.VENV, "venv")):
        mounts.append(_bind(inside, spec.volume.root / part, _WRITABLE))
    return mounts


def _bind(inside: str, source: Path, options: Sequence[str]) -> dict[str, object]:
    return {
        "destination": inside,
        "type": "bind",
        "source": str(source),
        "options": list(options),
    }
