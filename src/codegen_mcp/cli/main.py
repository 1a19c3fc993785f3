"""Entry point: ``--version`` answers before anything heavy is imported; commands load lazily."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from codegen_mcp.version import __version__

if TYPE_CHECKING:
    import click

COMMANDS = {
    "mcp": "codegen_mcp.cli.mcp:mcp",
    "serve": "codegen_mcp.cli.serve:serve",
    "worker": "codegen_mcp.cli.worker:worker",
    "coordinator": "codegen_mcp.cli.coordinator:coordinator",
    "run": "codegen_mcp.cli.run:run",
    "doctor": "codegen_mcp.cli.doctor:doctor",
    "sessions": "codegen_mcp.cli.sessions:sessions",
    "checkpoints": "codegen_mcp.cli.checkpoints:checkpoints",
    "artifacts": "codegen_mcp.cli.artifacts:artifacts",
    "tools": "codegen_mcp.cli.tools:tools",
    "token": "codegen_mcp.cli.token:token",
    "audit": "codegen_mcp.cli.audit:audit",
    "config": "codegen_mcp.cli.config:config",
}
"""Command name to where it is defined."""


def build() -> click.Group:
    """Return the command group; a command's module is imported when it is asked for."""
    import importlib

    import click

    class LazyGroup(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
            if name not in COMMANDS:
                return None
            module, _, attribute = COMMANDS[name].partition(":")
            command = getattr(importlib.import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command

    group = LazyGroup(
        "codegen-mcp",
        help="Run hostile code in isolated sessions, and get true answers.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    group.params.append(click.Option(["--version"], is_flag=True, help="Print the version."))
    return group


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = sys.argv[1:] if arguments is None else arguments
    if argv[:1] == ["--version"] or argv[:2] == ["worker", "--version"]:
        print(f"codegen-mcp {__version__}")
        return 0
    import click

    from codegen_mcp.core.errors import WorkerError

    try:
        result = build().main(argv, standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        print("aborted", file=sys.stderr)
        return 130
    except WorkerError as error:
        print(f"codegen-mcp: {error.message}", file=sys.stderr)
        return 1
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
