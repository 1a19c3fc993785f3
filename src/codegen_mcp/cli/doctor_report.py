"""What ``doctor`` finds out, as plain data: the keys are those of ``--json``."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from codegen_mcp.bootstrap.egress import make_egress
from codegen_mcp.bootstrap.host import Host, open_host
from codegen_mcp.bootstrap.isolation import sandbox_lines, worker_facts
from codegen_mcp.core.errors import InvalidRequest, WorkerError
from codegen_mcp.sandbox.base import Probe
from codegen_mcp.sandbox.host_facts import host_facts
from codegen_mcp.sandbox.place import find_place
from codegen_mcp.sandbox.registry import AUTO, Tenancy, choose, create, parse_level, probe_all
from codegen_mcp.sandbox.selftest.attack import Result
from codegen_mcp.sandbox.selftest.catalogue import ATTACKS
from codegen_mcp.sandbox.selftest.runner import Campaign
from codegen_mcp.settings import Settings

Report = dict[str, Any]


class Doctor:
    """Examines this machine for a worker with these settings.

    Args:
        settings: With a state directory of its own; nothing of it is left behind.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def examine(
        self,
        *,
        self_test: bool = False,
        found: Callable[[Report], object] | None = None,
        attacked: Callable[[str, Sequence[Result]], object] | None = None,
    ) -> Report:
        """Probe everything, and attack what is available where ``self_test`` says so.

        Args:
            self_test: Also run the whole attack suite.
            found: Is told of the report before the attacks begin.
            attacked: Is told of each backend's results as they come: its level, and they.

        Raises:
            InvalidRequest: The settings contradict themselves or name an unknown backend.
            WorkerError: The state directory, or a volume that is asked for, cannot be had.
        """
        async with open_host(self._settings) as host:
            probes = await probe_all(host.backends)
            place = find_place()
            report: Report = {
                "place": {
                    "kind": place.kind.value,
                    "distribution": place.title,
                    "systemd": place.systemd,
                },
                "host": [dataclasses.asdict(one) for one in await asyncio.to_thread(host_facts)],
                "backends": [_backend(probe) for probe in probes],
                "cgroups": _cgroups(host),
                "volumes": _volumes(host),
                "interpreters": [
                    {"name": one.name, "version": one.version, "executable": str(one.executable)}
                    for one in host.catalog.interpreters
                ],
                "egress": self._egress(host, probes),
                "worker": await self._worker(host),
            }
            if found is not None:
                found(report)
            if self_test:
                report["attacks"] = []
                for probe in self._attackable(probes):
                    results = await self._attack(host, probe)
                    if attacked is not None:
                        attacked(str(probe.level), results)
                    report["attacks"] += [_attack_result(probe, one) for one in results]
            return report

    async def _worker(self, host: Host) -> Report:
        """What a worker with these settings would say at its start, here and now."""
        settings = self._settings
        try:
            choice = await choose(
                host.backends,
                name=settings.sandbox,
                required=parse_level(settings.require_isolation),
                tenancy=Tenancy(settings.tenancy),
            )
            egress = await make_egress(settings, choice.backend)
        except InvalidRequest:
            raise
        except WorkerError as error:
            return {"starts": False, "refusal": error.message, "start_up": [], "facts": {}}
        return {
            "starts": True,
            "refusal": "",
            "start_up": sandbox_lines(settings, host, choice),
            "facts": worker_facts(settings, host, choice, egress),
        }

    def _egress(self, host: Host, probes: Sequence[Probe]) -> Report:
        """Which backends can have a way out, and what the settings make of it."""
        able = [
            str(probe.level)
            for probe in probes
            if probe.available
            and getattr(create(probe.name, host.backends), "carries_egress", False)
        ]
        allowed = self._settings.egress_allow.split()
        fix = "" if allowed else "to let sessions out: EGRESS_ALLOW='host host:port *.domain'"
        return {"backends": able, "allowed": allowed, "fix": fix}

    def _attackable(self, probes: Sequence[Probe]) -> list[Probe]:
        """Those that are available and asked for; with ``auto`` all that are available."""
        wanted = self._settings.sandbox
        chosen = [
            probe
            for probe in probes
            if probe.available and wanted in (AUTO, probe.name, str(probe.level), _short(probe))
        ]
        if not chosen and wanted != AUTO:
            raise InvalidRequest(f"sandbox {wanted!r} is not available here: see its reason above")
        return chosen

    async def _attack(self, host: Host, probe: Probe) -> Sequence[Result]:
        backend = create(probe.name, host.backends)
        return await Campaign(backend, host.backends, probe.level).run(ATTACKS)


def _short(probe: Probe) -> str:
    return probe.name.partition("-")[0] if probe.name.startswith("process") else probe.name


def _backend(probe: Probe) -> Report:
    return {
        "name": probe.name,
        "level": str(probe.level),
        "available": probe.available,
        "version": probe.version,
        "reason": probe.reason,
        "fix": probe.fix,
        "enforces": {wall: str(who) for wall, who in probe.enforces.items()},
        "checks": [{"name": name, "held": held, "seen": seen} for name, held, seen in probe.checks],
    }


def _cgroups(host: Host) -> Report:
    driver = host.detection.driver
    return {
        "version": driver.version if driver else 0,
        "controllers": sorted(driver.controllers) if driver else [],
        "memory_bytes": host.detection.memory_bytes,
        "refused": dict(host.detection.refused),
        "fix": host.detection.fix,
    }


def _volumes(host: Host) -> list[Report]:
    return [
        {
            "name": volume.name,
            "available": volume.available,
            "chosen": volume.name == host.volumes.name,
            "enforcement": str(volume.enforcement),
            "reason": volume.reason,
            "fix": volume.fix,
        }
        for volume in host.volume_probes
    ]


def _attack_result(probe: Probe, one: Result) -> Report:
    return {
        "backend": str(probe.level),
        "name": one.attack.name,
        "wall": one.attack.wall,
        "source": one.attack.source,
        "verdict": str(one.verdict),
        "seen": one.seen,
    }
