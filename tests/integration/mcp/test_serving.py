"""The two commands as processes: what they say, whom they let in, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from codegen_mcp.client import Sandbox
from codegen_mcp.testing.access_rig import new_entry, write_tokens
from codegen_mcp.testing.serve_process import (
    MCP,
    SERVE,
    SMALL,
    ServeProcess,
    serve_process,
)

from .conftest import NEW, OLD, facts

END_S = 30


def test_one_port_has_mcp_metrics_health_and_links_and_grpc_is_beside_it(
    served: ServeProcess,
) -> None:
    said = "".join(served.lines)
    assert "no token is asked for; every user of this machine" in said
    base = served.url.removesuffix("/mcp")
    ready = httpx2.get(f"{base}/readyz").text.splitlines()
    assert ready[0] == "ready"
    assert "filesystem: kernel" in ready
    assert httpx2.get(f"{base}/healthz").text == "ok\n"
    metrics = httpx2.get(f"{base}/metrics").text
    assert "worker_info" in metrics
    assert "coordinator_info" in metrics
    names = re.findall(r"^# TYPE (\S+)", metrics, re.M)
    assert len(names) == len(set(names))
    assert httpx2.get(f"{base}/nothing").status_code == 404
    with Sandbox.create(address=served.address) as sandbox:
        assert sandbox.run_python("print(1)").stdout == "1\n"


async def test_a_session_made_by_one_face_can_be_used_by_the_other(served: ServeProcess) -> None:
    async with Client(served.url, mode=NEW) as client:
        made = facts(await client.call_tool("fs_write", {"path": "a", "contents": "both"}))
        sandbox = Sandbox.connect(made["session_id"], address=served.address)
        assert sandbox.files.read("a") == "both"
        sandbox.kill()


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example.com"}, {"origin": "https://evil.example.com"}],
    ids=["by another name", "from a page of another"],
)
def test_web_pages_cannot_use_it(served: ServeProcess, headers: dict[str, str]) -> None:
    accept = {"accept": "application/json, text/event-stream"}
    hello = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    answer = httpx2.post(served.url, json=hello, headers={**accept, **headers})
    assert answer.status_code in (403, 421)


def test_it_refuses_other_addresses_without_authentication() -> None:
    done = subprocess.run(
        [sys.executable, *SERVE],
        env={**os.environ, **SMALL, "HOST": "0.0.0.0"},
        capture_output=True,
        text=True,
        timeout=END_S,
    )
    assert done.returncode == 1
    assert "can be reached from other machines" in done.stderr
    assert "--insecure-no-auth" in done.stderr


async def test_with_tokens_each_principal_has_its_own_and_nobody_else_gets_in(
    tmp_path: Path,
) -> None:
    alice, one = new_entry("alice")
    bob, two = new_entry("bob")
    write_tokens(tmp_path / "tokens", one, two)
    with serve_process(AUTH_TOKENS=str(tmp_path / "tokens")) as server:
        assert httpx2.post(server.url, json={}).status_code == 401
        made: list[str] = []
        for token, mode in ((alice, NEW), (bob, OLD)):
            headers = {"authorization": f"Bearer {token}"}
            async with httpx2.AsyncClient(headers=headers) as http:
                transport = streamable_http_client(server.url, http_client=http)
                async with Client(transport, mode=mode) as client:
                    wrote = await client.call_tool("fs_write", {"path": "a", "contents": token})
                    made.append(facts(wrote)["session_id"])
                    listed = facts(await client.call_tool("session_list", {}))
                    assert [one["session_id"] for one in listed["sessions"]] == made[-1:]
                    if len(made) == 2:
                        theirs = {"path": "a", "session_id": made[0]}
                        refused = await client.call_tool("fs_read", theirs)
                        assert refused.is_error
                        assert "there is no session" in refused.content[0].text  # type: ignore[union-attr]


@contextlib.contextmanager
def stdio(state: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, **SMALL, "BASE_WORKSPACE": str(state), **settings}
    with state.with_name("stdio.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *MCP],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def ask(process: subprocess.Popen[bytes], method: str, **params: object) -> dict[str, object]:
    """Ask over the raw stream; every line on it must be a message."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": NEW,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(body).encode() + b"\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    assert isinstance(answer["result"], dict), answer
    return dict(answer["result"])


def test_two_stdio_servers_with_the_same_settings_run_beside_each_other(
    stdio_state: Path,
) -> None:
    with stdio(stdio_state) as one, stdio(stdio_state, MCP_TOOL_NAMES="dotted") as two:
        listed = []
        for process, tool in ((one, "fs_list"), (two, "fs.list")):
            assert ask(process, "server/discover")["supportedVersions"] == [NEW]
            tools = ask(process, "tools/list")["tools"]
            assert isinstance(tools, list)
            listed.append({tool["name"] for tool in tools})
            code = {"code": "import os; os.write(1, b'raw'); print('text')"}
            ran = ask(process, "tools/call", name="run_python", arguments=code)
            assert ran["structuredContent"]["stdout"] == "rawtext\n"  # type: ignore[index]
            assert not ask(process, "tools/call", name=tool, arguments={})["isError"]
        assert {"fs_list", "run_python"} <= listed[0]
        assert {"fs.list", "run.python"} <= listed[1]
        assert Path(f"{stdio_state}-2").exists()

        assert one.stdin is not None
        one.stdin.close()
        assert one.wait(END_S) == 0
        two.send_signal(signal.SIGTERM)  # its client neither writes nor reads
        assert two.wait(END_S) == 0
