"""fs.move: rename inside the workspace."""

from __future__ import annotations

from pydantic import Field

from codegen_mcp.tools.argument_checks import workspace_path
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec


class FsMoveArguments(ToolModel):
    """Arguments of fs.move."""

    source: str = Field(description="Relative to the workspace.")
    target: str = Field(description="The new path itself, not a directory to move into.")
    overwrite: bool = Field(False, description="Replace a file that has the target's name.")
    create_dirs: bool = Field(False, description="Make missing parent directories of the target.")


class FsMoveResult(ToolModel):
    """Result of fs.move."""

    source: str = Field(description="The source as it was understood.")
    target: str = Field(description="Where it is now.")


class FsMoveTool:
    """Renames through the workspace's one door."""

    spec = ToolSpec(
        name="fs.move",
        title="Move or rename",
        description=(
            "Rename a file, link or directory of the session's workspace in one atomic step. "
            "An existing target is refused unless overwrite is true."
        ),
        arguments=FsMoveArguments,
        result=FsMoveResult,
        destructive=True,
    )

    async def run(self, ctx: ToolContext, arguments: FsMoveArguments) -> ToolResult:
        """Rename; NotFound when there is no source."""
        source, target = workspace_path(arguments.source), workspace_path(arguments.target)
        parent = target.rpartition("/")[0]
        if arguments.create_dirs and parent:
            await ctx.workspace.stat(source)  # no directories for a source that is not there
            await ctx.workspace.make_dir(parent)
        await ctx.workspace.move(source, target, overwrite=arguments.overwrite)
        return ToolResult(FsMoveResult(source=source, target=target))
