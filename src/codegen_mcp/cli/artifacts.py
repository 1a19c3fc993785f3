"""codegen-mcp artifacts: list, fetch and store the artifacts of a running worker."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from codegen_mcp.client.artifacts import Artifacts

T = TypeVar("T")


def _with_artifacts(
    address: str | None, session_id: str, work: Callable[[Artifacts], Awaitable[T]]
) -> T:
    """Run one SDK call; its errors become one line and exit code 1."""
    from codegen_mcp.client.artifacts import Artifacts
    from codegen_mcp.client.connection import Connection
    from codegen_mcp.client.errors import SandboxException

    async def ask() -> T:
        async with Connection(address) as connection:
            return await work(Artifacts(connection, session_id))

    try:
        return asyncio.run(ask())
    except SandboxException as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'file'}: {error.strerror}") from None


@click.group()
@click.option("--address", help="Worker (CODEGEN_MCP_ADDRESS; default 127.0.0.1:50052).")
@click.pass_context
def artifacts(ctx: click.Context, address: str | None) -> None:
    """List, fetch and store files that outlive their session."""
    ctx.obj = address


@artifacts.command("ls")
@click.argument("session_id", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with links.")
@click.pass_obj
def list_them(address: str | None, session_id: str, as_json: bool) -> None:
    """List the artifacts of a session, or all; newest first."""
    found = _with_artifacts(address, session_id, lambda kept: kept.list())
    if as_json:
        click.echo(json.dumps([asdict(info) for info in found], indent=2))
        return
    if not found:
        click.echo("no artifacts")
        return
    click.echo(f"{'ARTIFACT':<36} {'SIZE':>12} {'TYPE':<26} NAME")
    for info in found:
        # A name is hostile text: nothing in it may steer the terminal.
        name = "".join(one if one.isprintable() else "\ufffd" for one in info.name)
        click.echo(f"{info.artifact_id:<36} {info.size:>12} {info.content_type[:26]:<26} {name}")


@artifacts.command()
@click.argument("artifact_id")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; by default the artifact's id, in this directory. '-' is standard output.",
)
@click.pass_obj
def get(address: str | None, artifact_id: str, output: Path | None) -> None:
    """Download an artifact; it is compared with its recorded sha256."""
    if output == Path("-"):
        data = _with_artifacts(address, "", lambda kept: kept.download(artifact_id))
        sys.stdout.buffer.write(data)
        return
    target = output or Path(artifact_id)
    info = _with_artifacts(address, "", lambda kept: kept.download_to(artifact_id, target))
    click.echo(f"{target}: {info.size} bytes, sha256 {info.sha256}")


@artifacts.command()
@click.argument("session_id")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--name", help="Name of the artifact; by default the file's.")
@click.option("--type", "content_type", default="", help="Media type; by default by the name.")
@click.pass_obj
def put(
    address: str | None, session_id: str, file: Path, name: str | None, content_type: str
) -> None:
    """Store a local file as an artifact of a session; prints its id."""
    import mimetypes

    kind = content_type or mimetypes.guess_type(name or file.name)[0] or ""
    info = _with_artifacts(
        address, session_id, lambda kept: kept.upload(file, name, content_type=kind)
    )
    click.echo(info.artifact_id)


@artifacts.command("rm")
@click.argument("artifact_id")
@click.pass_obj
def remove(address: str | None, artifact_id: str) -> None:
    """Delete an artifact."""
    done = _with_artifacts(address, "", lambda kept: kept.delete(artifact_id))
    click.echo(f"deleted {artifact_id}" if done else f"{artifact_id} was gone already")
