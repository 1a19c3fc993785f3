"""run.python: code or a file, as ``__main__`` of a fresh interpreter."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.task import Command, Program, PythonCode, PythonFile
from codegen_mcp.tools.argument_checks import (
    check_args,
    check_code,
    check_env,
    choose_stdin,
    workspace_path,
)
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec
from codegen_mcp.tools.run_output import RunResult, run_result


class RunPythonArguments(ToolModel):
    """Arguments of run.python: exactly one of code and file."""

    code: str | None = Field(None, description="Source text to run. Print what you want to see.")
    file: str | None = Field(None, description="Instead of code: a .py file of the workspace.")
    args: tuple[str, ...] = Field((), description="What sys.argv[1:] shall be.")
    env_vars: Mapping[str, str] = Field({}, description="Environment variables of this run only.")
    timeout_seconds: float = Field(0, description="Wall time; 0 is the session's default.")
    stdin: bytes = Field(b"", description="Standard input as bytes (base64 in JSON).")
    stdin_text: str = Field("", description="Standard input as text, instead of stdin.")


class RunPythonTool:
    """Runs Python in the session's sandbox."""

    spec = ToolSpec(
        name="run.python",
        title="Run Python",
        description=(
            "Run Python code, or a .py file of the workspace, as __main__ in a fresh process of "
            "the session's sandbox. Files and installed packages stay between runs, variables do "
            "not. Only what is printed to stdout and stderr comes back. There is no network. "
            "A program that fails is an ordinary result with its exit_code and traceback."
        ),
        arguments=RunPythonArguments,
        result=RunResult,
        runs_code=True,
        destructive=True,
    )

    async def run(self, ctx: ToolContext, arguments: RunPythonArguments) -> ToolResult:
        """Check everything, then run."""
        command = Command(
            program=await _program(ctx, arguments),
            limits=ctx.limits_for(arguments.timeout_seconds),
            args=check_args(arguments.args),
            env={**ctx.env, **check_env(arguments.env_vars)},
            stdin=choose_stdin(arguments.stdin, arguments.stdin_text),
        )
        outcome = await ctx.run(command)
        return ToolResult(run_result(outcome, ctx.captured()), outcome)


async def _program(ctx: ToolContext, arguments: RunPythonArguments) -> Program:
    if arguments.file:
        if arguments.code:
            raise InvalidRequest("both code and file are set; send one of them")
        path = workspace_path(arguments.file)
        await ctx.workspace.read(path, 0, 0)  # NotFound or WrongState before anything runs
        # A name like '-c' must not be taken for an option where the file is exec'ed.
        return PythonFile("./" + path if path.startswith("-") else path)
    if arguments.code is None:
        raise InvalidRequest("neither code nor file is set; send the source text in code")
    return PythonCode(check_code("code", arguments.code))
