"""artifact.get: the bytes of an artifact."""

from __future__ import annotations

from pydantic import Field

from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec

MAX_RESULT_BYTES = 3 * 1024 * 1024
"""In one answer, which with all around it has at most 4 MiB."""


class ArtifactGetArguments(ToolModel):
    """Arguments of artifact.get."""

    artifact_id: str = Field(description="For example 'art_0123456789abcdef0123456789abcdef'.")


class ArtifactGetResult(ToolModel):
    """Result of artifact.get."""

    data: bytes = Field(description="All bytes of the artifact.")
    artifact_id: str
    size_bytes: int
    content_type: str
    name: str = Field(description="The file name that it was recorded with.")


class ArtifactGetTool:
    """Reads by id, whichever session made it."""

    spec = ToolSpec(
        name="artifact.get",
        title="Get artifact",
        description=(
            "Get the bytes of an artifact by its id. Files that code writes into the directory "
            "'artifacts' of the workspace become artifacts when the run ends, and the run's "
            "result names their ids. Artifacts outlive their session. At most 3 MiB; the error "
            "for a larger one has a link to download it."
        ),
        arguments=ArtifactGetArguments,
        result=ArtifactGetResult,
        read_only=True,
        idempotent=True,
    )

    async def run(self, ctx: ToolContext, arguments: ArtifactGetArguments) -> ToolResult:
        """Read it whole."""
        found = await ctx.artifact(arguments.artifact_id, MAX_RESULT_BYTES)
        return ToolResult(
            ArtifactGetResult(
                data=found.data,
                artifact_id=found.artifact_id,
                size_bytes=len(found.data),
                content_type=found.content_type,
                name=found.name,
            )
        )
