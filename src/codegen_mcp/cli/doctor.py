"""codegen-mcp doctor: what this machine can enforce, and how to get more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from codegen_mcp.cli.options import make_settings, sandbox_options
from codegen_mcp.cli.scratch import scratch_settings

WELL, REFUSED, FALLEN = 0, 1, 3
"""Exit codes; 2 is click's, for a wrong command line."""


@click.command(
    epilog="Exit code 0: a worker would start here, and every wall held. 1: it would refuse to "
    "start, for want of a sandbox as strong as --require-isolation. 2: wrong options. "
    "3: --self-test got through a wall that should have held."
)
@click.option(
    "--self-test",
    is_flag=True,
    help="Run the attack suite against every backend that is available, or the one that --sandbox "
    "names, and print the scorecard.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@sandbox_options
def doctor(
    self_test: bool, as_json: bool, sandbox: str | None, require_isolation: str | None
) -> int:
    """Probe everything by really using it, and say what is missing and how to get it."""
    from codegen_mcp.cli.doctor_report import Doctor
    from codegen_mcp.cli.doctor_show import show_attack, show_report, show_scores
    from codegen_mcp.telemetry.logs import configure_logging

    configure_logging("error")
    settings = make_settings(sandbox=sandbox, require_isolation=require_isolation)
    with scratch_settings(settings, disk_reserve_bytes=0) as scratch:
        examining = Doctor(scratch).examine(
            self_test=self_test,
            found=None if as_json else show_report,
            attacked=None if as_json else show_attack,
        )
        report = asyncio.run(examining)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif self_test:
        show_scores(report)
    return exit_code(report)


def exit_code(report: dict[str, Any]) -> int:
    """Return what a report comes to."""
    if any(one["verdict"] == "FAILED" for one in report.get("attacks", ())):
        return FALLEN
    return WELL if report["worker"]["starts"] else REFUSED
