"""``codegen-mcp serve`` with the tools and resources that the official suite calls."""

from __future__ import annotations

import asyncio
import os

import click
import uvloop


def main() -> int:
    """Serve by the environment's settings until told to stop; returns the exit code."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from codegen_mcp.bootstrap.mcp import serve_all
    from codegen_mcp.settings import Settings
    from codegen_mcp.testing.conformance_face import conformance_face

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve_all(Settings(), click.echo, conformance_face()))
