"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from codegen_mcp.core.masking import masked
from codegen_mcp.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

LEVELS = (
    "gvisor",
    "container",
    "bubblewrap",
    "bubblewrap-noproc",
    "process-hardened",
    "process-bare",
)


def sandbox_options(command: F) -> F:
    """Add --sandbox and --require-isolation."""
    command = click.option(
        "--require-isolation",
        type=click.Choice(LEVELS),
        help="Weakest isolation to accept (REQUIRE_ISOLATION; default bubblewrap).",
    )(command)
    return click.option(
        "--sandbox", metavar="NAME", help="Sandbox backend (WORKER_SANDBOX; default auto)."
    )(command)


def make_settings(**flags: Any) -> Settings:
    """Settings from the environment, overridden by the flags that were given (not None).

    Raises:
        click.UsageError: A value is not valid; the text names it.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc'])}="
            f"{masked(repr(item.get('input')))}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
        raise click.UsageError("invalid setting: " + "; ".join(lines)) from None
