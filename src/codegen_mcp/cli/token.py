"""codegen-mcp token: make bearer tokens."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from codegen_mcp.coordinator.auth.token_entry import (
    TokenEntry,
    TokenKind,
    hash_of,
    make_token,
    to_line,
)
from codegen_mcp.coordinator.auth.tokens import load_tokens
from codegen_mcp.coordinator.principal import Quotas
from codegen_mcp.core.errors import InvalidRequest


@click.group()
def token() -> None:
    """Bearer tokens for callers and workers."""


@token.command("new")
@click.argument("name")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Add it to this file (AUTH_TOKENS), which is made if it is not there.",
)
@click.option(
    "--worker",
    is_flag=True,
    help="For a worker to join with; NAME is its id, or the beginning of ids and a '*'.",
)
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="How long it works.")
@click.option("--sessions", type=click.IntRange(min=0), help="Quota; as are the next two.")
@click.option("--tasks", type=click.IntRange(min=0), help="Under way at once.")
@click.option("--calls-per-minute", type=click.IntRange(min=0))
def new(
    name: str,
    file: Path | None,
    worker: bool,
    days: float | None,
    sessions: int | None,
    tasks: int | None,
    calls_per_minute: int | None,
) -> int:
    """Make a token for NAME and print it, once: what is kept is its hash."""
    asked = {"sessions": sessions, "tasks": tasks, "calls_per_minute": calls_per_minute}
    given = {key: value for key, value in asked.items() if value is not None}
    made = make_token()
    expires = 0
    if days is not None:
        expires = int((datetime.now(UTC) + timedelta(days=days)).timestamp() * 1000)
    try:
        entry = TokenEntry(
            name=name,
            kind=TokenKind.WORKER if worker else TokenKind.PRINCIPAL,
            sha256=hash_of(made),
            expires_at_ms=expires,
        )
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    # Only what was given: the rest is as the service has it, now and later.
    line = json.dumps({**json.loads(to_line(entry)), **({"quotas": given} if given else {})})
    if file is None:
        click.echo(
            f"put this line into the file of tokens (AUTH_TOKENS, mode 0600):\n{line}", err=True
        )
    else:
        add_line(file, line)
        click.echo(f"added to {file}; it works at once where that is AUTH_TOKENS", err=True)
    click.echo("the token, which is shown only now:", err=True)
    click.echo(made)
    return 0


def add_line(path: Path, line: str) -> None:
    """Append to a file of tokens, which only its owner can read.

    Raises:
        InvalidRequest: It is damaged, open to others, or cannot be written.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidRequest(f"the file of tokens {str(path)!r}: {error.strerror}") from None
    with os.fdopen(fd, "r+b", buffering=0) as file:
        try:
            load_tokens(path, Quotas())
        except InvalidRequest as error:
            raise InvalidRequest(f"the file of tokens {str(path)!r}: {error.message}") from None
        size = file.seek(0, os.SEEK_END)
        ends_whole = True
        if size:
            file.seek(size - 1)
            ends_whole = file.read(1) == b"\n"
        # One write: whoever reads the file meanwhile sees all of the line or nothing.
        file.write((b"" if ends_whole else b"\n") + line.encode() + b"\n")
        os.fsync(fd)
