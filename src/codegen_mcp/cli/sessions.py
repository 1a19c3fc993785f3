"""codegen-mcp sessions: look at, copy and end the sessions of a running worker."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click

from codegen_mcp.cli.asking import ask, print_json, progress


@click.group(invoke_without_command=True)
@click.option("--address", help="Worker (CODEGEN_MCP_ADDRESS; default 127.0.0.1:50052).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def sessions(ctx: click.Context, address: str | None, as_json: bool) -> None:
    """List the sessions of a running worker; see also the commands below."""
    ctx.obj = address
    if ctx.invoked_subcommand is not None:
        return
    from codegen_mcp.client import AsyncSandbox

    found = ask(AsyncSandbox.list(address=address))
    if as_json:
        click.echo(json.dumps([asdict(info) for info in found], indent=2))
        return
    if not found:
        click.echo("no sessions")
        return
    click.echo(f"{'SESSION':<38} {'STATE':<13} {'IDLE':>7} {'TASKS':>5} {'MEMORY':>9} {'DISK':>9}")
    now = time.time() * 1000
    for info in found:
        idle = max(0, now - info.last_activity_ms) / 1000
        click.echo(
            f"{info.sandbox_id:<38} {info.state:<13} {idle:>6.0f}s {info.active_tasks:>5} "
            f"{info.memory_bytes / 2**20:>6.1f}MiB {info.disk_bytes / 2**20:>6.1f}MiB"
        )


@sessions.command()
@click.argument("session_id")
@click.pass_obj
def kill(address: str | None, session_id: str) -> None:
    """End a session at once."""

    async def end() -> bool:
        from codegen_mcp.client import AsyncSandbox

        sandbox = await AsyncSandbox.connect(session_id, address=address)
        try:
            return await sandbox.kill()
        finally:
            await sandbox.close()

    click.echo(f"ended {session_id}" if ask(end()) else f"{session_id} was gone already")


@sessions.command()
@click.argument("session_id")
@click.option("-n", "--count", type=click.IntRange(1, 64), default=1, help="How many copies.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def fork(address: str | None, session_id: str, count: int, as_json: bool) -> None:
    """Copy a session that has no task under way; prints the ids of the copies."""

    async def copy() -> list[str]:
        from codegen_mcp.client.checkpoints import SessionCheckpoints
        from codegen_mcp.client.connection import Connection

        async with Connection(address) as connection:
            return await SessionCheckpoints(connection, session_id).fork(count)

    with progress("copying", quiet=as_json):
        made = ask(copy())
    if as_json:
        print_json({"session_ids": made})
    else:
        click.echo("\n".join(made))
