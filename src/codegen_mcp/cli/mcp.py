"""codegen-mcp mcp: an MCP server on standard input and output, for one agent's client."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import click

from codegen_mcp.cli.options import make_settings, sandbox_options


@click.command()
@click.option("--max-sessions", type=int, help="Sessions at once (MAX_SESSIONS; default 5).")
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    help="State directory (BASE_WORKSPACE; default /tmp/workspaces); a free one beside it is taken "
    "where another server has it.",
)
@click.option("--log-level", help="debug, info, warn or error (LOG_LEVEL; default warn here).")
@sandbox_options
def mcp(
    max_sessions: int | None,
    workspace: Path | None,
    log_level: str | None,
    sandbox: str | None,
    require_isolation: str | None,
) -> int:
    """Serve MCP on standard input and output. Clients start this command by themselves."""
    settings = make_settings(
        max_sessions=max_sessions,
        base_workspace=workspace,
        log_level=log_level,
        sandbox=sandbox,
        require_isolation=require_isolation,
    )
    if "log_level" not in settings.model_fields_set:
        settings = settings.model_copy(update={"log_level": "warn"})
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import uvloop

    from codegen_mcp.bootstrap.mcp import serve_stdio

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve_stdio(settings, announce=partial(click.echo, err=True)))
