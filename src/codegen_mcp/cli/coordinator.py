"""codegen-mcp coordinator: one address for many workers, until a signal says stop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from codegen_mcp.cli.options import make_settings


@click.command()
@click.option(
    "--port", type=int, help="gRPC port (COORDINATOR_PORT; default 50050; 0: a free one)."
)
@click.option("--host", help="Address to bind (HOST; default 127.0.0.1).")
@click.option(
    "--directory",
    help="File of who owns which session (COORDINATOR_DIRECTORY; default in the state directory).",
)
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    help="State directory (BASE_WORKSPACE; default /tmp/workspaces).",
)
@click.option(
    "--http-port", type=int, help="Port of MCP at /mcp, for agents (HTTP_PORT; default off)."
)
@click.option("--metrics-port", type=int, help="HTTP port of /metrics (METRICS_PORT; default off).")
@click.option(
    "--insecure-no-auth",
    is_flag=True,
    default=None,
    help="Allow --host other than loopback though callers are not authenticated.",
)
@click.option("--log-level", help="debug, info, warn or error (LOG_LEVEL).")
def coordinator(
    port: int | None,
    host: str | None,
    directory: str | None,
    workspace: Path | None,
    http_port: int | None,
    metrics_port: int | None,
    insecure_no_auth: bool | None,
    log_level: str | None,
) -> int:
    """Route calls to the workers that join. The first SIGTERM drains, the second ends at once."""
    settings = make_settings(
        coordinator_port=port,
        host=host,
        coordinator_directory=directory,
        base_workspace=workspace,
        http_port=http_port,
        metrics_port=metrics_port,
        insecure_no_auth=insecure_no_auth,
        log_level=log_level,
    )
    # gRPC need not survive a fork here, and would warn at each.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import uvloop

    from codegen_mcp.bootstrap.coordinator import serve_coordinator

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve_coordinator(settings, announce=click.echo))
