"""Which tools there are: one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codegen_mcp.tools.artifact_get import ArtifactGetTool
from codegen_mcp.tools.base import Tool
from codegen_mcp.tools.echo import EchoTool
from codegen_mcp.tools.fs_delete import FsDeleteTool
from codegen_mcp.tools.fs_list import FsListTool
from codegen_mcp.tools.fs_move import FsMoveTool
from codegen_mcp.tools.fs_read import FsReadTool
from codegen_mcp.tools.fs_stat import FsStatTool
from codegen_mcp.tools.fs_write import FsWriteTool
from codegen_mcp.tools.pkg_install import PkgInstallTool
from codegen_mcp.tools.run_python import RunPythonTool
from codegen_mcp.tools.run_shell import RunShellTool

TOOLS: tuple[Tool[Any, Any], ...] = (
    EchoTool(),
    FsReadTool(),
    FsWriteTool(),
    FsListTool(),
    FsStatTool(),
    FsMoveTool(),
    FsDeleteTool(),
    RunPythonTool(),
    RunShellTool(),
    PkgInstallTool(),
    ArtifactGetTool(),
)


def tools_by_name() -> Mapping[str, Tool[Any, Any]]:
    """Every tool by its dotted name."""
    return {tool.spec.name: tool for tool in TOOLS}
