"""Settings of the face for agents. Part of ``settings.Settings``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from codegen_mcp.coordinator.mcp.config import (
    IMAGE_BYTES,
    MAX_BLOB_BYTES,
    MIN_RESULT_BYTES,
    RESULT_BYTES,
    McpConfig,
)


class McpSettings(BaseSettings):
    """How tools are named, and how much of its context a model is asked to spend on an answer."""

    mcp_tool_names: Literal["underscore", "dotted"] = "underscore"
    """How tools are listed: ``fs_read``, which every client takes, or ``fs.read``. Calls may use
    either."""
    mcp_result_bytes: int = Field(default=RESULT_BYTES, ge=MIN_RESULT_BYTES)
    """Of a result, images apart, as it is sent: its text and its structured form together."""
    mcp_image_bytes: int = Field(default=IMAGE_BYTES, ge=0, le=MAX_BLOB_BYTES)
    """Of all images in a result; those beyond are links."""

    @property
    def mcp(self) -> McpConfig:
        """Of the MCP server."""
        return McpConfig(
            tool_names=self.mcp_tool_names,
            result_bytes=self.mcp_result_bytes,
            image_bytes=self.mcp_image_bytes,
        )
