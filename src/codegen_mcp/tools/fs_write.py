"""fs.write: a whole file, atomically, with proof of what is on disk."""

from __future__ import annotations

from pydantic import Field

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.tools.argument_checks import to_utf8, workspace_path
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec


class FsWriteArguments(ToolModel):
    """Arguments of fs.write."""

    path: str = Field(description="Relative to the workspace, for example 'src/main.py'.")
    contents: str = Field("", description="The whole new text of the file, written as UTF-8.")
    create_dirs: bool = Field(False, description="Make missing parent directories.")
    data: bytes = Field(b"", description="Instead of contents: the bytes, as base64 in JSON.")
    mode: int = Field(
        0,
        description=(
            "Permission bits as a number, for example 493 for 0o755; 0 keeps those of an "
            "existing file, else 0o644."
        ),
    )


class FsWriteResult(ToolModel):
    """Result of fs.write."""

    path: str = Field(description="The path as it was understood.")
    bytes_written: int = Field(description="Length of the file on disk.")
    sha256: str = Field(description="Of what is on disk.")


class FsWriteTool:
    """Writes through the workspace's one door."""

    spec = ToolSpec(
        name="fs.write",
        title="Write file",
        description=(
            "Create or replace a file of the session's workspace. The file changes at once from "
            "old to new; readers never see half of it. Give text in contents, or bytes in data "
            "(base64). Parent directories must exist unless create_dirs is true."
        ),
        arguments=FsWriteArguments,
        result=FsWriteResult,
        destructive=True,
        idempotent=True,
    )

    async def run(self, ctx: ToolContext, arguments: FsWriteArguments) -> ToolResult:
        """Write; the answer repeats length and sha256 from the disk's side."""
        if arguments.contents and arguments.data:
            raise InvalidRequest("both contents and data are set; send one of them")
        path = workspace_path(arguments.path)
        data = arguments.data or to_utf8("contents", arguments.contents)
        length, digest = await ctx.workspace.write(
            path, data, create_dirs=arguments.create_dirs, mode=arguments.mode or None
        )
        return ToolResult(FsWriteResult(path=path, bytes_written=length, sha256=digest))
