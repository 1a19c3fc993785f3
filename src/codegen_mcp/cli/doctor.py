"""codegen-mcp doctor: what this machine can enforce, and how to get more."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import click

from codegen_mcp.cli.options import make_settings
from codegen_mcp.cli.scratch import scratch_settings
from codegen_mcp.settings import Settings


@click.command()
@click.option("--self-test", is_flag=True, help="Run the attack suite and print the scorecard.")
@click.option("--sandbox", metavar="NAME", help="Backend to attack (default: the strongest).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(self_test: bool, sandbox: str | None, as_json: bool) -> int:
    """Probe every backend by really using it; exit code 1 when no sandbox is available."""
    from codegen_mcp.telemetry.logs import configure_logging

    configure_logging("error")
    changes = {"disk_reserve_bytes": 0}
    with scratch_settings(make_settings(sandbox=sandbox), **changes) as settings:
        report = asyncio.run(_examine(settings, self_test, show=not as_json))
    if as_json:
        click.echo(json.dumps(report, indent=2))
    available = any(backend["available"] for backend in report["backends"])
    fallen = [one for one in report.get("attacks", ()) if one["verdict"] == "FAILED"]
    return 0 if available and not fallen else 1


async def _examine(settings: Settings, self_test: bool, *, show: bool) -> dict[str, Any]:
    from codegen_mcp.bootstrap import open_host
    from codegen_mcp.sandbox.registry import probe_all

    async with open_host(settings) as host:
        probes = await probe_all(host.backends)
        report: dict[str, Any] = {
            "backends": [
                {
                    "name": probe.name,
                    "level": str(probe.level),
                    "available": probe.available,
                    "version": probe.version,
                    "reason": probe.reason,
                    "fix": probe.fix,
                    "enforces": {wall: str(who) for wall, who in probe.enforces.items()},
                    "checks": [
                        {"name": name, "held": held, "seen": seen}
                        for name, held, seen in probe.checks
                    ],
                }
                for probe in probes
            ],
            "cgroups": {
                "version": host.detection.driver.version if host.detection.driver else 0,
                "controllers": sorted(host.detection.driver.controllers)
                if host.detection.driver
                else [],
                "refused": dict(host.detection.refused),
                "fix": host.detection.fix,
            },
            "volumes": [
                {
                    "name": volume.name,
                    "available": volume.available,
                    "enforcement": str(volume.enforcement),
                    "reason": volume.reason,
                    "fix": volume.fix,
                }
                for volume in host.volume_probes
            ],
            "interpreters": [
                {"name": one.name, "version": one.version, "executable": str(one.executable)}
                for one in host.catalog.interpreters
            ],
        }
        if show:
            _show(report)
        if self_test:
            report["attacks"] = await _attack(settings, host, probes, show=show)
    return report


def _show(report: dict[str, Any]) -> None:
    """Print the report for people."""
    for backend in report["backends"]:
        mark = _mark(backend["available"])
        version = f" {backend['version']}" if backend["version"] else ""
        held = sum(check["held"] for check in backend["checks"])
        click.echo(f"{mark} {backend['level']}{version}: {held}/{len(backend['checks'])} checks")
        walls: dict[str, list[str]] = {}
        for wall, who in backend["enforces"].items():
            walls.setdefault(who, []).append(wall)
        for who, names in walls.items():
            label = "NOT enforced" if who == "none" else f"enforced by {who}"
            click.echo(f"    {label}: {' '.join(names)}")
        _why(backend)
    groups = report["cgroups"]
    click.echo(f"{_mark(bool(groups['controllers']))} cgroup v{groups['version']}: ", nl=False)
    click.echo(" ".join(groups["controllers"]) or "none")
    for name, why in groups["refused"].items():
        click.echo(f"    no {name}: {why}")
    if groups["fix"]:
        click.echo(f"    fix: {groups['fix']}")
    for volume in report["volumes"]:
        click.echo(
            f"{_mark(volume['available'])} volume {volume['name']}: size enforced by "
            f"{volume['enforcement']}"
        )
        _why(volume)
    for one in report["interpreters"]:
        click.echo(f"{_mark(True)} {one['name']} {one['version']}: {one['executable']}")


def _why(item: dict[str, Any]) -> None:
    if item["reason"]:
        click.echo(f"    {item['reason']}")
    if item["fix"]:
        click.echo(f"    fix: {item['fix']}")


def _mark(good: bool) -> str:
    return click.style("ok  ", fg="green") if good else click.style("no  ", fg="red")


async def _attack(
    settings: Settings, host: Any, probes: Any, *, show: bool
) -> list[dict[str, Any]]:
    """Run the whole suite against one backend."""
    from codegen_mcp.sandbox.registry import create
    from codegen_mcp.sandbox.report import scorecard
    from codegen_mcp.sandbox.selftest.catalogue import ATTACKS
    from codegen_mcp.sandbox.selftest.runner import Campaign

    wanted = next(
        (
            probe
            for probe in probes
            if probe.available and settings.sandbox in ("auto", probe.name, str(probe.level))
        ),
        None,
    )
    if wanted is None:
        raise click.ClickException(f"sandbox {settings.sandbox!r} is not available here")
    if show and sys.stderr.isatty():
        click.echo(f"attacking {wanted.level} with {len(ATTACKS)} attacks ...", err=True)
    backend = create(wanted.name, host.backends)
    results = await Campaign(backend, host.backends, wanted.level).run(ATTACKS)
    if show:
        for line in scorecard(results):
            click.echo(line)
    return [
        {
            "name": one.attack.name,
            "wall": one.attack.wall,
            "source": one.attack.source,
            "verdict": str(one.verdict),
            "seen": one.seen,
        }
        for one in results
    ]
