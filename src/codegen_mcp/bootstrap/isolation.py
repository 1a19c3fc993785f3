"""What isolation a worker found, said in the same words wherever it is said.

The start-up line, ``doctor``, GetCapacity, ``/readyz`` and each session's status come from here.
"""

from __future__ import annotations

import os

from codegen_mcp.bootstrap.host import Host
from codegen_mcp.egress.service import Egress
from codegen_mcp.sandbox.base import Probe
from codegen_mcp.sandbox.registry import Choice
from codegen_mcp.sandbox.remedies import show_bytes
from codegen_mcp.sandbox.report import describe
from codegen_mcp.settings import Settings

WARNING = "sandbox: WARNING "
SHOWN_HOSTS = 8
"""Of EGRESS_ALLOW, in the start-up lines."""


def isolation(probe: Probe, egress: Egress) -> dict[str, str]:
    """Facts of every session.

    Wall name to who enforces it, ``sandbox`` to the level, ``egress`` to the way out, and
    ``weaker`` to why less holds than this level promises; absent where all of it does.
    """
    return {
        "sandbox": str(probe.level),
        "egress": egress.summary,
        **{name: str(who) for name, who in probe.enforces.items()},
        **({"weaker": probe.reason} if probe.reason else {}),
    }


def worker_facts(settings: Settings, host: Host, choice: Choice, egress: Egress) -> dict[str, str]:
    """Facts of the worker, for GetCapacity and ``/readyz``: those of its sessions, and these.

    ``sandbox_version``; ``self_test`` (checks that held, of how many); ``cgroup`` (version and
    controllers); ``volume``; ``require_isolation``; ``warning``: what the start-up lines warn of,
    one a line, each with its remedy; absent where they warn of nothing.
    """
    probe, driver = choice.probe, host.detection.driver
    warned = warnings(settings, host, choice)
    return {
        **isolation(probe, egress),
        "sandbox_version": probe.version,
        "self_test": f"{sum(held for _, held, _ in probe.checks)}/{len(probe.checks)}",
        "cgroup": f"v{driver.version} {' '.join(sorted(driver.controllers))}" if driver else "none",
        "volume": host.volumes.name,
        "require_isolation": settings.require_isolation,
        **({"warning": "\n".join(warned)} if warned else {}),
    }


def warnings(settings: Settings, host: Host, choice: Choice) -> list[str]:
    """Return what the start-up lines warn of, without what leads each of them in."""
    lines = sandbox_lines(settings, host, choice)
    return [line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)]


def sandbox_lines(settings: Settings, host: Host, choice: Choice) -> list[str]:
    """Say who enforces what, how much, and what nobody does."""
    volumes, detection = host.volumes, host.detection
    groups = f"cgroup-v{detection.driver.version}" if detection.driver else "no cgroup"
    lines = describe(
        choice.probe,
        details={
            "memory": f"{groups} {show_bytes(settings.memory_bytes)}",
            "pids": f"{settings.pids}",
            "cpu": f"{settings.cpu_millicores / 1000:g}",
            "disk": f"{volumes.name} {show_bytes(settings.disk_bytes)}",
        },
        facts={"uids": settings.uid_range} if os.geteuid() == 0 else {},
        rejected=choice.rejected,
    )
    if detection.refused:
        lacking = ", ".join(f"{name} ({why})" for name, why in detection.refused.items())
        lines.append(f"{WARNING}no cgroup for {lacking}; to get it: {detection.fix}")
    if volumes.warning:
        lines.append(f"{WARNING}{volumes.warning}")
    allowed = settings.egress_allow.split()
    if allowed and not getattr(choice.backend, "carries_egress", False):
        lines.append(
            f"{WARNING}EGRESS_ALLOW is set, and {choice.backend.name} has no way out to the "
            "network: tasks that ask for it are refused; use bubblewrap or container"
        )
    elif allowed:
        shown = " ".join(allowed[:SHOWN_HOSTS]) + (" ..." if len(allowed) > SHOWN_HOSTS else "")
        lines.append(f"sandbox: tasks that ask for the network reach {shown}, and nothing else")
    return lines
