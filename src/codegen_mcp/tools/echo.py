"""echo: answer with what was sent."""

from __future__ import annotations

from pydantic import Field

from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec


class EchoArguments(ToolModel):
    """Arguments of echo."""

    message: str = Field("", description="Comes back as it is.")


class EchoResult(ToolModel):
    """Result of echo."""

    message: str


class EchoTool:
    """Answers with the message, untouched."""

    spec = ToolSpec(
        name="echo",
        title="Echo",
        description="Return the message unchanged. Use it to check that the session answers.",
        arguments=EchoArguments,
        result=EchoResult,
        read_only=True,
        idempotent=True,
    )

    async def run(self, ctx: ToolContext, arguments: EchoArguments) -> ToolResult:
        """Return the message."""
        return ToolResult(EchoResult(message=arguments.message))
