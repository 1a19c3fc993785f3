"""verify, export and import of ``codegen-mcp checkpoints``: on the store, without a worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import click

from codegen_mcp.cli.asking import ask, print_json, printable, progress, size
from codegen_mcp.cli.options import make_settings
from codegen_mcp.core.checkpoint import CheckpointInfo
from codegen_mcp.engine.checkpoints.base import Verified
from codegen_mcp.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

F = TypeVar("F", bound=Callable[..., object])


class CheckpointStore(Protocol):
    """The part of ``engine.checkpoints.base.Checkpoints`` that needs no sessions."""

    async def list(self, session_id: str = "") -> Sequence[CheckpointInfo]:
        """See there; likewise below."""

    def verify(self, session_id: str = "") -> AsyncIterator[Verified]: ...  # noqa: D102

    async def export(self, checkpoint_id: str, target: Path) -> int: ...  # noqa: D102

    async def import_(self, source: Path) -> CheckpointInfo: ...  # noqa: D102


OpenStore = Callable[[Settings], AbstractAsyncContextManager[CheckpointStore]]
"""Opens the store that the settings name."""


class HasStore(Protocol):
    """What the commands are given by their group."""

    open_store: OpenStore


def open_store(settings: Settings) -> AbstractAsyncContextManager[CheckpointStore]:
    """Open the store that the settings name."""
    from codegen_mcp.bootstrap import open_checkpoint_store

    return open_checkpoint_store(settings)


def store_options(command: F) -> F:
    """Add --store, --workspace and --json."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    command = click.option(
        "--workspace",
        type=click.Path(path_type=Path),
        help="State directory of the worker whose store it is (BASE_WORKSPACE).",
    )(command)
    return click.option(
        "--store",
        metavar="PATH_OR_URL",
        help="Where checkpoints are kept (CHECKPOINT_DIR; by default 'store' in the state "
        "directory).",
    )(command)


@click.command()
@click.argument("session_id", default="")
@store_options
@click.pass_context
def verify(
    ctx: click.Context, session_id: str, store: str | None, workspace: Path | None, as_json: bool
) -> None:
    """Read every byte of every checkpoint again, of one session or of all.

    Exit code 1 when one is damaged.
    """
    settings = make_settings(checkpoint_dir=store, base_workspace=workspace)
    found = ask(verify_all(ctx.obj, settings, session_id, quiet=as_json))
    bad = [one for one in found if not one.ok]
    if as_json:
        print_json(
            {
                "ok": not bad,
                "checkpoints": [
                    {**asdict(one), "checkpoint_id": str(one.checkpoint_id)} for one in found
                ],
            }
        )
    else:
        for one in bad:
            click.echo(f"DAMAGED {one.checkpoint_id}: {printable(one.problem)}")
        read = size(sum(one.bytes_read for one in found))
        click.echo(f"{len(found)} checkpoints, {read} read: {len(bad)} damaged")
        if bad:
            click.echo(
                "a damaged checkpoint cannot be restored; use another one of its session, or "
                "import an exported copy after 'codegen-mcp checkpoints rm'",
                err=True,
            )
    if bad:
        ctx.exit(1)


async def verify_all(
    reach: HasStore, settings: Settings, session_id: str, *, quiet: bool
) -> list[Verified]:
    """Verify one after the other."""
    found: list[Verified] = []
    async with reach.open_store(settings) as kept:
        total = sum(info.size_bytes for info in await kept.list(session_id))
        with progress("verifying", total=total, quiet=quiet) as advance:
            verified: AsyncGenerator[Verified, None]
            verified = kept.verify(session_id)  # type: ignore[assignment]  # they are generators
            async with aclosing(verified):
                async for one in verified:
                    found.append(one)
                    advance(one.bytes_read)
    return found


@click.command("export")
@click.argument("checkpoint_id")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@store_options
@click.pass_obj
def export_checkpoint(
    reach: HasStore,
    checkpoint_id: str,
    file: Path | None,
    store: str | None,
    workspace: Path | None,
    as_json: bool,
) -> None:
    """Write a checkpoint and all that it needs to FILE, by default CHECKPOINT_ID.tar.gz."""
    settings = make_settings(checkpoint_dir=store, base_workspace=workspace)
    target = file or Path(f"{Path(checkpoint_id).name}.tar.gz")

    async def export() -> int:
        async with reach.open_store(settings) as kept:
            with progress("exporting", quiet=as_json):
                return await kept.export(checkpoint_id, target)

    written = ask(export())
    if as_json:
        print_json({"checkpoint_id": checkpoint_id, "file": str(target), "bytes": written})
    else:
        click.echo(f"{target}: {size(written)}")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@store_options
@click.pass_obj
def import_checkpoint(
    reach: HasStore, file: Path, store: str | None, workspace: Path | None, as_json: bool
) -> None:
    """Take in an exported checkpoint under its own id; everything is verified first."""
    settings = make_settings(checkpoint_dir=store, base_workspace=workspace)

    async def take_in() -> CheckpointInfo:
        async with reach.open_store(settings) as kept:
            with progress("importing", quiet=as_json):
                return await kept.import_(file)

    info = ask(take_in())
    if as_json:
        print_json({"checkpoint_id": str(info.checkpoint_id), "bytes": info.size_bytes})
    else:
        click.echo(str(info.checkpoint_id))
