"""How a directory entry is shown by every file tool."""

from __future__ import annotations

from pydantic import Field

from codegen_mcp.tools.base import FileStat, ToolModel


class FileInfo(ToolModel):
    """One file, directory, link or special file."""

    path: str = Field(description="Relative to the workspace; bytes that are not UTF-8 as \\xNN.")
    name: str = Field(description="Last part of the path.")
    size_bytes: int
    is_directory: bool
    modified_time_ms: int = Field(description="Unix milliseconds.")
    path_bytes: bytes = Field(description="The path exactly as it is on disk.")
    link_target: str = Field("", description="Text of a symbolic link; it is never followed here.")
    mode: int = Field(description="Permission bits, for example 420 for 0o644.")
    kind: str = Field(description="file, directory, symlink, fifo, socket or device.")


def file_info(entry: FileStat) -> FileInfo:
    """Show one entry."""
    path = entry.text
    return FileInfo.model_construct(
        path=path,
        name=entry.path.rpartition(b"/")[2].decode("utf-8", "backslashreplace"),
        size_bytes=entry.size,
        is_directory=entry.kind == "directory",
        modified_time_ms=entry.mtime_ns // 1_000_000,
        path_bytes=entry.path,
        link_target=entry.link_target.decode("utf-8", "backslashreplace"),
        mode=entry.mode,
        kind=entry.kind,
    )
