"""fs.list: what is in a directory or a tree."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.tools.argument_checks import workspace_path
from codegen_mcp.tools.base import FileStat, ToolContext, ToolModel, ToolResult, ToolSpec
from codegen_mcp.tools.file_info import FileInfo, file_info

DEFAULT_LIMIT = 10_000
MAX_OFFSET = 90_000
MAX_RESULT_BYTES = 2 * 1024 * 1024
_FIXED_BYTES = 64
"""Numbers and tags of one entry on the wire, at most."""


class FsListArguments(ToolModel):
    """Arguments of fs.list."""

    path: str = Field("", description="Directory relative to the workspace; empty is all of it.")
    recursive: bool = Field(False, description="Go into directories below.")
    pattern: str = Field(
        "",
        description=(
            "Glob: * ? [abc] within a name, ** for any number of directories. Without '/' it is "
            "held against names at any depth ('*.py'), with '/' against paths below the listed "
            "directory ('src/**/*.py'). Empty is everything."
        ),
    )
    limit: int = Field(0, description="Entries to return at most; 0 is as many as fit (10,000).")
    offset: int = Field(0, description="Entries to skip; continue with next_offset.")


class FsListResult(ToolModel):
    """Result of fs.list."""

    files: tuple[FileInfo, ...] = Field(description="Sorted by path.")
    total_count: int = Field(description="How many match in all, returned or not.")
    next_offset: int = Field(0, description="Offset of the next page; 0 when this is the last.")


class FsListTool:
    """Lists through the workspace's one door."""

    spec = ToolSpec(
        name="fs.list",
        title="List files",
        description=(
            "List a directory of the session's workspace, sorted by path, with sizes and times. "
            "Symbolic links are shown with their target and never followed. total_count counts "
            "every match; when it is more than what was returned, ask again with "
            "offset=next_offset. Set limit to keep answers short."
        ),
        arguments=FsListArguments,
        result=FsListResult,
        read_only=True,
        idempotent=True,
    )

    async def run(self, ctx: ToolContext, arguments: FsListArguments) -> ToolResult:
        """List one page, cut where it would grow too large for one message."""
        limit, offset = arguments.limit or DEFAULT_LIMIT, arguments.offset
        if not 0 <= limit <= DEFAULT_LIMIT or not 0 <= offset <= MAX_OFFSET:
            raise InvalidRequest(
                f"limit {limit!r} or offset {offset!r} is out of range; limit goes to "
                f"{DEFAULT_LIMIT}, offset to {MAX_OFFSET}; beyond, list directories one by one"
            )
        entries, total = await ctx.workspace.list(
            workspace_path(arguments.path, root_allowed=True),
            recursive=arguments.recursive,
            pattern=arguments.pattern,
            limit=offset + limit,
        )
        files = _that_fit(entries[offset:])
        end = offset + len(files)
        return ToolResult(
            FsListResult(
                files=files, total_count=total, next_offset=end if files and end < total else 0
            )
        )


def _that_fit(entries: Sequence[FileStat]) -> tuple[FileInfo, ...]:
    files: list[FileInfo] = []
    size = 0
    for entry in entries:
        info = file_info(entry)
        texts = len((info.path + info.name + info.link_target).encode())
        size += texts + len(entry.path) + _FIXED_BYTES
        if size > MAX_RESULT_BYTES and files:
            break
        files.append(info)
    return tuple(files)
