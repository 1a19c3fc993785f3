"""codegen-mcp sessions: look at and end the sessions of a running worker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

import click

T = TypeVar("T")


def _ask(work: Coroutine[Any, Any, T]) -> T:
    """Run one SDK call; its errors become one line and exit code 1."""
    from codegen_mcp.client.errors import SandboxException

    try:
        return asyncio.run(work)
    except SandboxException as error:
        raise click.ClickException(str(error)) from None


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

    found = _ask(AsyncSandbox.list(address=address))
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

    click.echo(f"ended {session_id}" if _ask(end()) else f"{session_id} was gone already")
