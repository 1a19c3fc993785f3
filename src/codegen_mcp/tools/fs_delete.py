"""fs.delete: remove a file, a link or a directory."""

from __future__ import annotations

from pydantic import Field

from codegen_mcp.tools.argument_checks import workspace_path
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec


class FsDeleteArguments(ToolModel):
    """Arguments of fs.delete."""

    path: str = Field(description="Relative to the workspace.")
    recursive: bool = Field(False, description="Remove a directory with everything in it.")


class FsDeleteResult(ToolModel):
    """Result of fs.delete."""

    path: str = Field(description="The path as it was understood.")
    deleted_count: int = Field(description="Files, links and directories that were removed.")


class FsDeleteTool:
    """Removes through the workspace's one door."""

    spec = ToolSpec(
        name="fs.delete",
        title="Delete file or directory",
        description=(
            "Delete a file, link or empty directory of the session's workspace; with "
            "recursive=true a directory and all that is in it. A symbolic link is removed "
            "itself, never what it points to."
        ),
        arguments=FsDeleteArguments,
        result=FsDeleteResult,
        destructive=True,
    )

    async def run(self, ctx: ToolContext, arguments: FsDeleteArguments) -> ToolResult:
        """Remove; NotFound when there is nothing."""
        path = workspace_path(arguments.path)
        count = await ctx.workspace.delete(path, recursive=arguments.recursive)
        return ToolResult(FsDeleteResult(path=path, deleted_count=count))
