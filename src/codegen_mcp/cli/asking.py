"""What commands share that ask a worker or a store: one line for an error, safe text, progress."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

T = TypeVar("T")

Advance = Callable[[int], None]
"""Takes how much more is done."""


def ask(work: Coroutine[Any, Any, T]) -> T:
    """Run it; errors of a worker, a store or the system become one line and exit code 1."""
    from codegen_mcp.client.errors import SandboxException
    from codegen_mcp.core.errors import WorkerError

    try:
        return asyncio.run(work)
    except (SandboxException, WorkerError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'file'}: {error.strerror}") from None


@contextmanager
def progress(what: str, *, total: int | None = None, quiet: bool = False) -> Iterator[Advance]:
    """Show on a terminal's standard error that work goes on; a bar where the total is known.

    Args:
        what: A few words.
        total: Bytes to do; None is not known.
        quiet: Show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    if total is not None:
        columns.insert(2, DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def printable(text: str) -> str:
    """Replace what could steer a terminal: names in sessions are hostile text."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def size(count: int) -> str:
    """Return bytes for people."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, 3)
    return f"{count / 1024**power:.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def moment(milliseconds: int) -> str:
    """Return a time of creation for people, in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000))


def print_json(value: object) -> None:
    """Print for programs."""
    click.echo(json.dumps(value, indent=2))
