"""Finds out by trying what a backend holds: boot it, attack it quickly, and say what to do."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from codegen_mcp.core.errors import WorkerError
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import (
    WALLS,
    Enforcement,
    IsolationLevel,
    Probe,
    SandboxBackend,
)
from codegen_mcp.sandbox.selftest.attack import Attack, Verdict
from codegen_mcp.sandbox.selftest.catalogue import ATTACKS, QUICK
from codegen_mcp.sandbox.selftest.runner import (
    NO_SCOPES,
    SHARED_USER,
    Campaign,
    conditions,
    known_gaps,
)

TIMEOUT_S = 20.0
"""Under a second is usual."""

_DOCS = "docs/concepts/sandbox.md"
_CONTAINER = (
    "in a container: hostUsers: false, procMount: Unmasked and a seccomp profile that allows "
    f"clone, unshare, mount, umount2 and pivot_root; see {_DOCS}"
)
_FIXES = (
    ("runsc is not installed", "install gVisor, see https://gvisor.dev/docs/user_guide/install/"),
    ("podman is not installed", "apt-get install podman, or start Docker"),
    ("no image is named", "set CONTAINER_IMAGE to one that `podman images` lists"),
    ("No such image", "pull it first: sessions never do"),
    ("no such image", "pull it first: sessions never do"),
    ("not installed", "apt-get install bubblewrap"),
    ("Unknown option", "install bubblewrap 0.8 or later"),
    ("mount proc", f"unmask /proc; {_CONTAINER}"),
    ("max_*_namespaces", "sysctl -w user.max_user_namespaces=15000"),
    ("No space left", "sysctl -w user.max_user_namespaces=15000"),
    ("namespace", _CONTAINER),
    ("uid map", _CONTAINER),
    ("has no Landlock", "boot with lsm=landlock,... on Linux 5.13 or later"),
)
_SWITCHES = (
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor refuses user namespaces: install the profile bwrap-userns-restrict "
        "(package apparmor-profiles), or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
)


async def self_test(
    backend: SandboxBackend,
    config: BackendConfig,
    level: IsolationLevel,
    enforces: Mapping[str, Enforcement],
    *,
    version: str = "",
    attacks: Sequence[Attack] = QUICK,
) -> Probe:
    """Boot a sandbox and run attacks in it; never raises but when cancelled.

    A wall that falls makes the backend unavailable: better none than one that does not hold.
    """
    probe = Probe(
        name=backend.name, available=False, level=level, version=version, enforces=enforces
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            results = await Campaign(backend, config, level).run(attacks, neighbour=False)
    except TimeoutError:
        return dataclasses.replace(probe, reason=f"the self-test took over {TIMEOUT_S:.0f} s")
    except WorkerError as error:
        return dataclasses.replace(probe, reason=error.message, fix=fix_for(error.message))
    except Exception as error:
        return dataclasses.replace(probe, reason=f"{type(error).__name__}: {error}")
    checks = tuple((one.attack.name, one.verdict is Verdict.HELD, one.seen) for one in results)
    fallen = [one for one in results if one.verdict is Verdict.FAILED]
    if fallen:
        seen = "; ".join(f"{one.attack.name}: {one.seen}" for one in fallen)
        return dataclasses.replace(probe, checks=checks, reason=f"self-test failed: {seen}")
    return dataclasses.replace(
        probe,
        checks=checks,
        available=True,
        reason=_gaps(config, level),
    )


def _gaps(config: BackendConfig, level: IsolationLevel) -> str:
    """What gets through at a level that is known to be weak; empty for the others."""
    found = [
        reason
        for attack in ATTACKS
        for reason in known_gaps(
            attack, conditions(config, level) & {level.value, SHARED_USER, NO_SCOPES}
        )
    ]
    return f"known gaps: {'; '.join(dict.fromkeys(found))}" if found else ""


def fix_for(reason: str, sysctls: Path = Path("/proc/sys")) -> str:
    """Return what to do about a reason; empty when nothing is known."""
    if "namespace" in reason or "uid map" in reason or "RTM_NEWADDR" in reason:
        for name, value, fix in _SWITCHES:
            if _sysctl(sysctls / name) == value:
                return fix
    for words, fix in _FIXES:
        if words in reason:
            return fix
    return ""


def enforcement(
    config: BackendConfig, strong: Mapping[str, Enforcement]
) -> Mapping[str, Enforcement]:
    """Return who holds each wall up.

    Args:
        config: Says which control groups and volumes there are.
        strong: What the backend itself does, and what it does where a group is missing.
    """
    groups = config.cgroups.controllers if config.cgroups is not None else frozenset()
    disk = config.volumes.enforcement if config.volumes is not None else Enforcement.NONE
    found = {
        "cpu": Enforcement.NONE,
        "disk": disk,
        "open_files": Enforcement.RLIMIT,
        "file_size": Enforcement.RLIMIT,
        "output": Enforcement.WORKER,
        "wall_time": Enforcement.WORKER,
        **strong,
        **dict.fromkeys(groups & {"memory", "pids", "cpu"}, Enforcement.KERNEL),
    }
    return {wall: found.get(wall, Enforcement.NONE) for wall in WALLS}


def _sysctl(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
