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


_TENANCY = "codegen_mcp.tenancy"


def sandbox_options(command: F) -> F:
    """Add --sandbox, --require-isolation and --tenancy (which ``make_settings`` takes itself)."""
    command = click.option(
        "--tenancy",
        type=click.Choice(("trusted", "hostile")),
        expose_value=False,
        callback=_keep_tenancy,
        help="Who shares this worker: hostile prefers gVisor and containers (TENANCY).",
    )(command)
    command = click.option(
        "--require-isolation",
        type=click.Choice(LEVELS),
        help="Weakest isolation to accept (REQUIRE_ISOLATION; default bubblewrap).",
    )(command)
    return click.option(
        "--sandbox", metavar="NAME", help="Sandbox backend (SANDBOX; default auto)."
    )(command)


def _keep_tenancy(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    context.meta[_TENANCY] = value
    return value


def make_settings(**flags: Any) -> Settings:
    """Settings from the environment, overridden by the flags that were given (not None).

    Raises:
        click.UsageError: A value is not valid; the text names it.
    """
    context = click.get_current_context(silent=True)
    flags.setdefault("tenancy", context.meta.get(_TENANCY) if context is not None else None)
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
