"""Which tools there are: one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codegen_mcp.tools.base import Tool
from codegen_mcp.tools.echo import EchoTool

TOOLS: tuple[Tool[Any, Any], ...] = (EchoTool(),)


def tools_by_name() -> Mapping[str, Tool[Any, Any]]:
    """Every tool by its dotted name."""
    return {tool.spec.name: tool for tool in TOOLS}
