"""fs.stat: facts of one file, directory or link."""

from __future__ import annotations

from pydantic import Field

from codegen_mcp.tools.argument_checks import workspace_path
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec
from codegen_mcp.tools.file_info import FileInfo, file_info


class FsStatArguments(ToolModel):
    """Arguments of fs.stat."""

    path: str = Field("", description="Relative to the workspace; empty is the workspace itself.")


class FsStatTool:
    """Looks through the workspace's one door."""

    spec = ToolSpec(
        name="fs.stat",
        title="File facts",
        description=(
            "Tell kind, size, modification time and permissions of one file, directory or link "
            "of the session's workspace. A symbolic link is described itself, with its target."
        ),
        arguments=FsStatArguments,
        result=FileInfo,
        read_only=True,
        idempotent=True,
    )

    async def run(self, ctx: ToolContext, arguments: FsStatArguments) -> ToolResult:
        """Look; NotFound when there is nothing."""
        path = workspace_path(arguments.path, root_allowed=True)
        return ToolResult(file_info(await ctx.workspace.stat(path)))
