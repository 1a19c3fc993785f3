"""fs.read: a file, or a range of it, exactly."""

from __future__ import annotations

import base64
import hashlib

from pydantic import Field

from codegen_mcp.core.errors import LimitExceeded
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec

MAX_RESULT_BYTES = 1024 * 1024
"""Of the file in one answer: it travels twice (text or base64, and bytes), below 3 MiB in all."""


class FsReadArguments(ToolModel):
    """Arguments of fs.read."""

    path: str = Field(description="Relative to the workspace, for example 'data/report.csv'.")
    offset: int = Field(0, description="First byte to read; 0 is the beginning.")
    length: int = Field(0, description="Bytes to read at most; 0 is to the end of the file.")


class FsReadResult(ToolModel):
    """Result of fs.read."""

    contents: str = Field(description="The text, or base64 when encoding is 'base64'.")
    size_bytes: int = Field(description="Size of the whole file.")
    encoding: str = Field(description="'utf-8', or 'base64' when the bytes are not UTF-8 text.")
    data: bytes = Field(description="The bytes that were read, exactly.")
    sha256: str = Field(description="Of data.")


class FsReadTool:
    """Reads through the workspace's one door."""

    spec = ToolSpec(
        name="fs.read",
        title="Read file",
        description=(
            "Read a file of the session's workspace. Valid UTF-8 comes back as exact text; "
            "anything else, and a range that splits a character, as base64 with "
            "encoding='base64'. At most 1 MiB a call: use offset and length for larger files "
            "(size_bytes tells the whole size)."
        ),
        arguments=FsReadArguments,
        result=FsReadResult,
        read_only=True,
        idempotent=True,
    )

    async def run(self, ctx: ToolContext, arguments: FsReadArguments) -> ToolResult:
        """Read the range; refuse more than fits into one answer rather than cut it short."""
        wanted = arguments.length or MAX_RESULT_BYTES
        if wanted > MAX_RESULT_BYTES:
            raise _too_long(arguments, arguments.length)
        data, size = await ctx.workspace.read(arguments.path, arguments.offset, wanted)
        rest = size - arguments.offset
        if not arguments.length and rest > len(data) and rest > MAX_RESULT_BYTES:
            raise _too_long(arguments, rest)
        contents, encoding = _as_text(data)
        return ToolResult(
            FsReadResult(
                contents=contents,
                size_bytes=size,
                encoding=encoding,
                data=data,
                sha256=hashlib.sha256(data).hexdigest(),
            )
        )


def _as_text(data: bytes) -> tuple[str, str]:
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode("ascii"), "base64"


def _too_long(arguments: FsReadArguments, length: int) -> LimitExceeded:
    return LimitExceeded(
        f"{length} bytes of {arguments.path[:200]!r} do not fit into one answer (at most "
        f"{MAX_RESULT_BYTES}); read ranges with offset and length, or download it as a stream"
    )
