"""codegen-mcp config: show the effective settings."""

from __future__ import annotations

import json

import click

from codegen_mcp.cli.options import make_settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(as_json: bool) -> None:
    """Print every setting with the value that is in force (secrets masked)."""
    shown = make_settings().shown()
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    for name, value in shown.items():
        click.echo(f"{name.upper()}={value}")
