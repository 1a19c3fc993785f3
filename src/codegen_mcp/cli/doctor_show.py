"""How ``doctor`` shows its report to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from codegen_mcp.sandbox.report import scorecard
from codegen_mcp.sandbox.selftest.attack import Result

Report = dict[str, Any]
NOT_PROTECTED = (
    "Not protected by any backend: bandwidth of disk and memory, side channels (caches, timing), "
    "and, but for gVisor, bugs of the host's kernel. See docs/concepts/threat-model.md."
)


def show_report(report: Report) -> None:
    """Print everything that was found, with its remedies."""
    place = report["place"]
    click.echo(f"{place['distribution'] or 'unknown Linux'}, {place['kind']}")
    for fact in report["host"]:
        click.echo(f"{_mark(fact['good'])} {fact['name']}: {fact['seen']}")
        _fix(fact["fix"])
    for backend in report["backends"]:
        _show_backend(backend)
    _show_cgroups(report["cgroups"])
    for volume in report["volumes"]:
        use = ", in use" if volume["chosen"] else ""
        click.echo(
            f"{_mark(volume['available'])} volume {volume['name']}: size enforced by "
            f"{volume['enforcement']}{use}"
        )
        _why(volume)
    for one in report["interpreters"]:
        click.echo(f"{_mark(True)} {one['name']} {one['version']}: {one['executable']}")
    egress = report["egress"]
    click.echo(
        f"{_mark(bool(egress['backends']))} egress: can be had with "
        f"{' '.join(egress['backends']) or 'no backend'}; allowed now: "
        f"{' '.join(egress['allowed']) or 'nothing'}"
    )
    _fix(egress["fix"])
    _show_worker(report["worker"])


def show_attack(level: str, results: Sequence[Result]) -> None:
    """Print one backend's scorecard."""
    click.echo(f"\nattacks on {level}:")
    for line in scorecard(results):
        click.echo(line)


def show_scores(report: Report) -> None:
    """Print one line for each backend that was attacked, and what nobody protects."""
    click.echo()
    attacks = report["attacks"]
    for level in dict.fromkeys(one["backend"] for one in attacks):
        verdicts = [one["verdict"] for one in attacks if one["backend"] == level]
        held, gaps, failed = (verdicts.count(word) for word in ("HELD", "GAP", "FAILED"))
        click.echo(
            f"{_mark(not failed)} {level}: {len(verdicts)} attacks tried, {held} held, {gaps} got "
            f"through as its level says beforehand, {failed} got through that should not"
        )
    click.echo(NOT_PROTECTED)


def _show_backend(backend: Report) -> None:
    version = f" {backend['version']}" if backend["version"] else ""
    held = sum(check["held"] for check in backend["checks"])
    name = backend["level"] if backend["available"] else backend["name"]
    tried = f"{held}/{len(backend['checks'])} checks" if backend["checks"] else "not started"
    click.echo(f"{_mark(backend['available'])} sandbox {name}{version}: {tried}")
    if backend["available"]:
        walls: dict[str, list[str]] = {}
        for wall, who in backend["enforces"].items():
            walls.setdefault(who, []).append(wall)
        for who, names in walls.items():
            label = "NOT enforced" if who == "none" else f"enforced by {who}"
            click.echo(f"    {label}: {' '.join(names)}")
    _why(backend)


def _show_cgroups(groups: Report) -> None:
    controllers = " ".join(groups["controllers"]) or "none that can be used"
    version = f" v{groups['version']}" if groups["version"] else ""
    click.echo(f"{_mark(not groups['refused'])} cgroup{version}: {controllers}")
    for name, why in groups["refused"].items():
        click.echo(f"    no {name}: {why}")
    _fix(groups["fix"])


def _show_worker(worker: Report) -> None:
    if worker["starts"]:
        click.echo(f"{_mark(True)} a worker with these settings starts, and says:")
        for line in worker["start_up"]:
            click.echo(f"    {line}")
        click.echo(f"    egress: {worker['facts']['egress']}")
    else:
        click.echo(f"{_mark(False)} a worker with these settings refuses to start:")
        click.echo(f"    {worker['refusal']}")


def _why(item: Report) -> None:
    if item["reason"]:
        click.echo(f"    {item['reason']}")
    _fix(item["fix"])


def _fix(fix: str) -> None:
    if fix:
        click.echo(f"    fix: {fix}")


def _mark(good: bool) -> str:
    return click.style("ok  ", fg="green") if good else click.style("no  ", fg="red")
