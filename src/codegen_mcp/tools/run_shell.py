"""run.shell: a command line of /bin/sh."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from codegen_mcp.core.errors import InvalidRequest, WrongState
from codegen_mcp.core.task import Argv, Command
from codegen_mcp.tools.argument_checks import (
    MAX_ARGUMENT_BYTES,
    check_args,
    check_env,
    choose_stdin,
    workspace_path,
)
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec
from codegen_mcp.tools.run_output import RunResult, run_result


class RunShellArguments(ToolModel):
    """Arguments of run.shell."""

    command: str = Field(description="For /bin/sh -c, for example 'ls -l | wc -l'.")
    cwd: str = Field("", description="Working directory relative to the workspace.")
    env_vars: Mapping[str, str] = Field({}, description="Environment variables of this run only.")
    timeout_seconds: float = Field(0, description="Wall time; 0 is the session's default.")
    stdin: bytes = Field(b"", description="Standard input as bytes (base64 in JSON).")
    stdin_text: str = Field("", description="Standard input as text, instead of stdin.")


class RunShellTool:
    """Runs a shell in the session's sandbox."""

    spec = ToolSpec(
        name="run.shell",
        title="Run shell command",
        description=(
            "Run a command line with /bin/sh in the session's sandbox, in the workspace or in "
            "cwd below it. Files stay between runs; variables, functions and background "
            "processes do not. There is no network and no root. A command that fails is an "
            "ordinary result with its exit_code."
        ),
        arguments=RunShellArguments,
        result=RunResult,
        runs_code=True,
        destructive=True,
    )

    async def run(self, ctx: ToolContext, arguments: RunShellArguments) -> ToolResult:
        """Check everything, then run."""
        (line,) = check_args([_short_enough(arguments.command)])
        command = Command(
            program=Argv(("/bin/sh", "-c", line)),
            limits=ctx.limits_for(arguments.timeout_seconds),
            env={**ctx.env, **check_env(arguments.env_vars)},
            stdin=choose_stdin(arguments.stdin, arguments.stdin_text),
            cwd=await _directory(ctx, arguments.cwd),
        )
        outcome = await ctx.run(command)
        return ToolResult(run_result(outcome, ctx.captured()), outcome)


def _short_enough(command: str) -> str:
    if len(command) > MAX_ARGUMENT_BYTES:
        raise InvalidRequest(
            f"command has {len(command)} characters, at most {MAX_ARGUMENT_BYTES} are possible; "
            "write it to a file with fs.write and run 'sh FILE'"
        )
    return command


async def _directory(ctx: ToolContext, cwd: str) -> str:
    if not cwd:
        return ""
    path = workspace_path(cwd, root_allowed=True)
    if path == ".":
        return ""
    kind = (await ctx.workspace.stat(path)).kind
    if kind == "symlink":  # shown to exist and to stay inside by looking into it
        await ctx.workspace.list(path, recursive=False, pattern="", limit=0)
    elif kind != "directory":
        raise WrongState(f"cwd {cwd[:200]!r} is a {kind}; name a directory of the workspace")
    return path
