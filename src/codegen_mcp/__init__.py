"""A worker that runs hostile code in isolated sessions and never lies about their state."""

from codegen_mcp.version import __version__

__all__ = ["__version__"]
