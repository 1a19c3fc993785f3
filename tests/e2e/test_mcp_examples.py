"""The examples for agents do what they say, with the official client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from codegen_mcp.testing.serve_process import SMALL, serve_process, state_place

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=90,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_agent_over_stdio() -> None:
    with state_place() as state:
        said = run("agent_over_stdio.py", **SMALL, BASE_WORKSPACE=str(state))
    assert "23 tools, among them run_python" in said
    assert "\ntotal 12\n" in said
    assert said.endswith("after the restore: numbers.txt\n")


def test_an_agent_over_http() -> None:
    with serve_process() as server:
        said = run("agent_over_http.py", MCP_URL=server.url)
    assert " s  5 squared is 25\n" in said
    assert "exit code 0\n" in said
    assert "an image to look at: image/png\n" in said
    assert "a program that fails: FileNotFoundError" in said
