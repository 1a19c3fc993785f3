"""One `codegen-mcp serve` for all these tests, and official clients of every sort."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp_types import CallToolResult

from codegen_mcp.testing.serve_process import (
    MCP,
    SMALL,
    ServeProcess,
    serve_process,
    state_place,
)
from codegen_mcp.testing.small_index import small_index, small_wheel

OLD, NEW = "legacy", "2026-07-28"
TRANSPORTS = ("stdio", "http")
KINDS = [(transport, mode) for transport in TRANSPORTS for mode in (OLD, NEW)]


@dataclass
class Agent:
    """A connected client; calls that name no session use the one that came first."""

    client: Client
    mode: str
    transport: str
    session_id: str = ""

    async def call(self, tool: str, progress: Any = None, /, **arguments: Any) -> CallToolResult:
        """Call a tool, in the agent's session where it has one."""
        if self.session_id and tool not in SESSIONLESS:
            arguments.setdefault("session_id", self.session_id)
        result = await self.client.call_tool(tool, arguments, progress_callback=progress)
        facts = result.structured_content or {}
        if not self.session_id and tool != "session_list":
            self.session_id = facts.get("session_id", "")
        return result

    async def run(self, code: str, **more: Any) -> dict[str, Any]:
        """run_python; returns its facts."""
        return facts(await self.call("run_python", code=code, **more))


SESSIONLESS = {"session_create", "session_list", "session_restore", "artifact_get", "output_read"}
Connect = Callable[..., AbstractAsyncContextManager[Agent]]


def facts(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, text(result)
    assert result.structured_content is not None
    return dict(result.structured_content)


def text(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


@pytest.fixture(scope="session")
def index() -> Iterator[str]:
    """A package index on loopback with one small package."""
    with small_index({"seven-1.0-py3-none-any.whl": small_wheel("seven")}) as url:
        yield url


@pytest.fixture(scope="session")
def served(index: str) -> Iterator[ServeProcess]:
    """A server for whoever needs no other than any."""
    with serve_process(
        MAX_SESSIONS="80", PACKAGE_INDEX_URLS=index, EGRESS_ALLOW="pypi.org *.example.com"
    ) as server:
        yield server
    assert server.process.returncode == 0


@asynccontextmanager
async def over_http(url: str, mode: str) -> AsyncIterator[Agent]:
    async with Client(url, mode=mode) as client:
        yield Agent(client, mode, "http")


@pytest.fixture(scope="session")
def stdio_state() -> Iterator[Path]:
    """The state directory of all stdio servers, one after the other: the first fills it."""
    with state_place() as state:
        yield state


@asynccontextmanager
async def over_stdio(mode: str, state: Path, **settings: str) -> AsyncIterator[Agent]:
    env = {**os.environ, **SMALL, "BASE_WORKSPACE": str(state), **settings}
    command = StdioServerParameters(command=sys.executable, args=list(MCP), env=env)
    with open(os.devnull, "w") as quiet:
        async with Client(stdio_client(command, errlog=quiet), mode=mode) as client:
            yield Agent(client, mode, "stdio")


@pytest.fixture
def connect(request: pytest.FixtureRequest, index: str) -> Connect:
    """Connect a client by any transport and revision."""

    def make(transport: str, mode: str) -> AbstractAsyncContextManager[Agent]:
        if transport == "http":
            return over_http(request.getfixturevalue("served").url, mode)
        state = request.getfixturevalue("stdio_state")
        return over_stdio(mode, state, PACKAGE_INDEX_URLS=index)

    return make
