"""codegen-mcp tools: what a session can be asked for."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print names, schemas and annotations.")
def tools(as_json: bool) -> None:
    """List the tools of this worker, from their specs."""
    from codegen_mcp.tools.registry import TOOLS

    specs = [tool.spec for tool in TOOLS]
    if as_json:
        click.echo(
            json.dumps(
                [
                    {
                        "name": spec.name,
                        "title": spec.title,
                        "description": spec.description,
                        "runs_code": spec.runs_code,
                        "read_only": spec.read_only,
                        "destructive": spec.destructive,
                        "idempotent": spec.idempotent,
                        "arguments": spec.arguments.model_json_schema(),
                        "result": spec.result.model_json_schema(),
                    }
                    for spec in specs
                ],
                indent=2,
            )
        )
        return
    width = max(len(spec.name) for spec in specs)
    for spec in specs:
        first = spec.description.split(". ")[0].rstrip(".")
        click.echo(f"{spec.name:<{width}}  {first}.")
