"""codegen-mcp worker: serve gRPC until a signal says stop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from codegen_mcp.cli.options import make_settings, sandbox_options


@click.command()
@click.option("--version", is_flag=True, help="Print the version and exit.")
@click.option("--port", type=int, help="gRPC port (GRPC_PORT; default 50052; 0: a free one).")
@click.option("--host", help="Address to bind (HOST; default 127.0.0.1).")
@click.option("--max-sessions", type=int, help="Sessions at once (MAX_SESSIONS; default 5).")
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    help="State directory (BASE_WORKSPACE; default /tmp/workspaces).",
)
@click.option(
    "--coordinator", help="host:port of the coordinator to join (COORDINATOR_ADDR; default none)."
)
@click.option("--metrics-port", type=int, help="HTTP port of /metrics (METRICS_PORT; default off).")
@click.option(
    "--insecure-no-auth",
    is_flag=True,
    default=None,
    help="Allow --host other than loopback though callers are not authenticated.",
)
@click.option("--log-level", help="debug, info, warn or error (LOG_LEVEL).")
@sandbox_options
def worker(
    version: bool,
    port: int | None,
    host: str | None,
    max_sessions: int | None,
    workspace: Path | None,
    coordinator: str | None,
    metrics_port: int | None,
    insecure_no_auth: bool | None,
    log_level: str | None,
    sandbox: str | None,
    require_isolation: str | None,
) -> int:
    """Serve sessions over gRPC. The first SIGTERM or SIGINT drains, the second ends at once."""
    settings = make_settings(
        grpc_port=port,
        host=host,
        max_sessions=max_sessions,
        base_workspace=workspace,
        coordinator_addr=coordinator,
        metrics_port=metrics_port,
        insecure_no_auth=insecure_no_auth,
        log_level=log_level,
        sandbox=sandbox,
        require_isolation=require_isolation,
    )
    # gRPC need not survive a fork here (children exec at once), and would warn at each.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import uvloop

    from codegen_mcp.bootstrap import serve

    # A call passes the loop several times, and this one's turns are cheaper.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings, announce=click.echo))
