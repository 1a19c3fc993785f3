"""What the start-up log and ``doctor`` say about the sandbox: who holds which wall up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from codegen_mcp.sandbox.base import Enforcement, Probe
from codegen_mcp.sandbox.selftest.attack import Result, Verdict

_HEADINGS = (
    ((Enforcement.KERNEL,), "enforced by kernel"),
    ((Enforcement.RLIMIT,), "enforced by rlimit, for each process"),
    ((Enforcement.WORKER,), "enforced by worker"),
    ((Enforcement.NONE,), "NOT enforced"),
)


def describe(
    probe: Probe,
    *,
    details: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    rejected: Sequence[Probe] = (),
) -> list[str]:
    """Return the lines, the most important first.

    Args:
        probe: Of the backend in use.
        details: Wall to what holds it or how much it allows: ``{"memory": "cgroup-v1 512 MiB"}``.
        facts: Further settings to name: ``{"uids": "200000-265535"}``.
        rejected: Stronger backends that cannot be had.
    """
    details = details or {}
    held = sum(ok for _, ok, _ in probe.checks)
    head = f"sandbox: backend={probe.level.value}"
    head += f" {probe.version}" if probe.version else ""
    head += f" self-test={held}/{len(probe.checks)}"
    head += "".join(f" {name}={value}" for name, value in (facts or {}).items())
    parts = []
    for kinds, heading in _HEADINGS:
        walls = [_with_detail(wall, details) for wall, by in probe.enforces.items() if by in kinds]
        if walls:
            parts.append(f"{heading}: {' '.join(walls)}")
    lines = [head, f"sandbox: {'; '.join(parts)}"]
    if probe.reason:
        lines.append(f"sandbox: WARNING {probe.level.value}: {probe.reason}")
    for other in rejected:
        fix = f"; to get it: {other.fix}" if other.fix else ""
        lines.append(f"sandbox: WARNING no {other.name}: {other.reason or 'too weak'}{fix}")
    return lines


def scorecard(results: Sequence[Result]) -> list[str]:
    """Return one line for each attack and a sum, for people."""
    width = max((len(one.attack.name) for one in results), default=0)
    lines = [
        f"{one.verdict.value:<6} {one.attack.wall:<10} {one.attack.name:<{width}}  {one.seen[:160]}"
        for one in results
    ]
    counts = {verdict: sum(one.verdict is verdict for one in results) for verdict in Verdict}
    summary = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items())
    return [*lines, f"{len(results)} attacks: {summary}"]


def _with_detail(wall: str, details: Mapping[str, str]) -> str:
    return f"{wall}({details[wall]})" if wall in details else wall
