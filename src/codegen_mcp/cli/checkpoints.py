"""codegen-mcp checkpoints: save, restore and look after the checkpoints of sessions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import click

from codegen_mcp.cli.asking import ask, moment, print_json, printable, progress, size
from codegen_mcp.cli.checkpoint_store import (
    OpenStore,
    export_checkpoint,
    import_checkpoint,
    open_store,
    verify,
)

if TYPE_CHECKING:
    from codegen_mcp.client import CheckpointInfo, RestoreInfo

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@dataclass(slots=True)
class Reach:
    """Where the commands find what they work on."""

    address: str | None = None
    """Of a worker."""
    open_store: OpenStore = field(default=open_store)


@click.group()
@click.option("--address", help="Worker (CODEGEN_MCP_ADDRESS; default 127.0.0.1:50052).")
@click.pass_context
def checkpoints(ctx: click.Context, address: str | None) -> None:
    """Save sessions of a running worker, restore them, and look after the store.

    verify, export and import need no worker: they open the store (CHECKPOINT_DIR) themselves.
    """
    ctx.obj = ctx.obj or Reach()
    ctx.obj.address = address


@checkpoints.command("ls")
@click.argument("session_id", default="")
@click.option("--workspace-id", default="", help="Only those of this workspace.")
@JSON
@click.pass_obj
def list_them(reach: Reach, session_id: str, workspace_id: str, as_json: bool) -> None:
    """List the checkpoints of a session, alive or gone, or all; newest first."""
    from codegen_mcp.client import AsyncCheckpoint

    found = ask(AsyncCheckpoint.list(session_id, workspace_id=workspace_id, address=reach.address))
    if as_json:
        print_json([asdict(info) for info in found])
        return
    if not found:
        click.echo("no checkpoints; make one with 'codegen-mcp checkpoints create SESSION_ID'")
        return
    width = max(len(info.checkpoint_id) for info in found)
    click.echo(f"{'CHECKPOINT':<{width}} {'CREATED':<19} {'SIZE':>10} {'KIND':<11} NAME")
    for info in found:
        kind = "incremental" if info.parent_id else "full"
        click.echo(
            f"{info.checkpoint_id:<{width}} {moment(info.created_at_ms)} "
            f"{size(info.size_bytes):>10} {kind:<11} {printable(info.name)}"
        )


@checkpoints.command()
@click.argument("checkpoint_id")
@JSON
@click.pass_obj
def show(reach: Reach, checkpoint_id: str, as_json: bool) -> None:
    """Show what a checkpoint holds."""
    from codegen_mcp.client import AsyncCheckpoint

    info = ask(AsyncCheckpoint.get(checkpoint_id, address=reach.address))
    if as_json:
        print_json(asdict(info))
        return
    for name, value in facts(info).items():
        click.echo(f"{name + ':':<12} {printable(value)}")
    for path in info.modified_files:
        click.echo(f"  {printable(path)}")
    if info.modified_count > len(info.modified_files):
        more = info.modified_count - len(info.modified_files)
        click.echo(f"  and {more} that are not named (packages, or more than are listed)")


def facts(info: CheckpointInfo) -> dict[str, str]:
    """Return what people are shown of one, by label."""
    return {
        "checkpoint": info.checkpoint_id,
        "name": info.name or "-",
        "session": info.sandbox_id,
        "workspace": info.workspace_id or "-",
        "created": f"{moment(info.created_at_ms)} ({info.trigger})",
        "language": info.language,
        "builds on": info.parent_id or "nothing (a full one)",
        "archive": f"{size(info.size_bytes)}, {info.storage_url}",
        "sha256": info.sha256,
        "files": f"{info.entries} entries, {size(info.total_bytes)}",
        "stood still": f"{info.freeze_ms:.1f} ms ({info.consistency})",
        "packages": " ".join(info.installed_packages) or "-",
        "changed": f"{info.modified_count} files",
    }


@checkpoints.command()
@click.argument("session_id")
@click.option("--name", default="", help="A name for people.")
@click.option("--full", is_flag=True, help="Store everything, not only what changed.")
@JSON
@click.pass_obj
def create(reach: Reach, session_id: str, name: str, full: bool, as_json: bool) -> None:
    """Save a session; prints the checkpoint's id once it is durable and verified."""

    async def save() -> CheckpointInfo:
        from codegen_mcp.client.checkpoints import SessionCheckpoints
        from codegen_mcp.client.connection import Connection

        async with Connection(reach.address) as connection:
            session = SessionCheckpoints(connection, session_id)
            return await session.save(name, incremental=not full)

    with progress("saving", quiet=as_json):
        info = ask(save())
    if as_json:
        print_json(asdict(info))
    else:
        click.echo(info.checkpoint_id)


@checkpoints.command()
@click.argument("checkpoint_id")
@click.option("--in-place", is_flag=True, help="Into its own session, which keeps its id.")
@JSON
@click.pass_obj
def restore(reach: Reach, checkpoint_id: str, in_place: bool, as_json: bool) -> None:
    """Restore a checkpoint into a new session; prints the session's id."""

    async def begin() -> RestoreInfo:
        from codegen_mcp.client.checkpoints import restore as restore_checkpoint
        from codegen_mcp.client.connection import Connection

        async with Connection(reach.address) as connection:
            return await restore_checkpoint(connection, checkpoint_id, new_session=not in_place)

    with progress("restoring", quiet=as_json):
        done = ask(begin())
    if as_json:
        print_json(asdict(done))
        return
    click.echo(done.sandbox_id)
    if done.lost:
        click.echo(f"lost: {printable(done.lost)}", err=True)


@checkpoints.command("rm")
@click.argument("checkpoint_ids", nargs=-1, required=True)
@JSON
@click.pass_obj
def remove(reach: Reach, checkpoint_ids: tuple[str, ...], as_json: bool) -> None:
    """Delete checkpoints; what later ones need of them stays until they go."""
    from codegen_mcp.client import AsyncCheckpoint

    for checkpoint_id in checkpoint_ids:
        ask(AsyncCheckpoint.delete(checkpoint_id, address=reach.address))
        if not as_json:
            click.echo(f"deleted {checkpoint_id}")
    if as_json:
        print_json({"deleted": checkpoint_ids})


for command in (verify, export_checkpoint, import_checkpoint):
    checkpoints.add_command(command)
