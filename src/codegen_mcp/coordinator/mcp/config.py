"""What the MCP face is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from codegen_mcp.core.limits import KIB
from codegen_mcp.version import __version__

ToolNames = Literal["underscore", "dotted"]

MAX_EVENT_BYTES = 1024 * KIB
"""Official clients refuse a longer server-sent event; a result is one."""
MAX_BLOB_BYTES = 720 * KIB
"""Of a resource that is read: as base64 it stays below MAX_EVENT_BYTES."""
RESULT_BYTES = 32 * KIB
MIN_RESULT_BYTES = 8 * KIB
IMAGE_BYTES = 512 * KIB
MAX_READ_BYTES = 256 * KIB
"""Of one ``output_read``: it travels twice, as text and structured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpConfig:
    """How tools are named and how much an answer may cost."""

    version: str = __version__
    tool_names: ToolNames = "underscore"
    """How tools are listed; calls may use either form."""
    result_bytes: int = RESULT_BYTES
    """Of a result as JSON, images apart: its text and its structured form together."""
    image_bytes: int = IMAGE_BYTES
    """Of all images in one result, before base64; larger ones are links."""
    progress_interval_s: float = 0.25
    """Between two progress notifications of one call."""
    quiet_s: float = 5.0
    """After this long without output a notification says that the code still runs, which keeps
    clients from giving up."""

    def __post_init__(self) -> None:
        if self.result_bytes < MIN_RESULT_BYTES:
            raise ValueError(
                f"result_bytes={self.result_bytes!r} must be at least {MIN_RESULT_BYTES}"
            )
        if not 0 <= self.image_bytes <= MAX_BLOB_BYTES:
            raise ValueError(f"image_bytes={self.image_bytes!r} must be 0 to {MAX_BLOB_BYTES}")

    @property
    def form_bytes(self) -> int:
        """Of each of the two forms; the rest is for what is around the output."""
        return self.result_bytes // 2 - 2 * KIB
