"""Finds out by trying what a backend holds: boot it, attack it quickly, and say what to do."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence

from codegen_mcp.core.errors import WorkerError
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import (
    WALLS,
    Enforcement,
    IsolationLevel,
    Probe,
    SandboxBackend,
)
from codegen_mcp.sandbox.fixes import fix_for
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
            campaign = Campaign(backend, config, level)
            results = await campaign.run(attacks, neighbour=False, together=True)
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
