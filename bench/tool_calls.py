"""What the MCP face and the coordinator cost beside the worker's own gRPC: echo and run_python.

The official client runs in this process, and is most of the time of MCP at high concurrency; the
rows of a bare client send ready-made bytes over kept connections, and show the server's part.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cases
import processes
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from stats import Samples, Target

from codegen_mcp.client.connection import Connection

CONCURRENCY = (1, 16, 64)
CALLS = int(os.environ.get("BENCH_N", "60")) * 2
"""Of each face and tool at each concurrency, at least one for each session."""
OLD, NEW = "legacy", "2026-07-28"
SMALL = {"MAX_SESSIONS": "70", "DISK_BYTES": str(32 << 20), "DISK_RESERVE_BYTES": "0"}
TOOLS: Mapping[str, dict[str, str]] = {
    "echo": {"message": "x" * 64},
    "run_python": {"code": "print(1)"},
}
Call = Callable[[str, str], Awaitable[object]]
"""Takes a tool's name and a session."""


async def measure(python: Path) -> tuple[list[Samples], list[Target]]:
    """Every face at every concurrency, in turns."""
    samples: list[Samples] = []
    targets: list[Target] = []
    async with AsyncExitStack() as stack:
        address, _ = await stack.enter_async_context(processes.worker(**SMALL))
        direct = await stack.enter_async_context(Connection(address))
        served_address, url = await stack.enter_async_context(processes.served(**SMALL))
        through = await stack.enter_async_context(Connection(served_address))
        most = max(CONCURRENCY)
        on_worker = [await cases.create(direct) for _ in range(most)]
        on_served = [await cases.create(through) for _ in range(most)]
        for concurrency in CONCURRENCY:
            faces: dict[str, tuple[Call, list[str]]] = {
                "gRPC direct": (_grpc(direct), on_worker),
                "gRPC by coordinator": (_grpc(through), on_served),
                "MCP HTTP, bare client": (
                    await stack.enter_async_context(_bare(url, concurrency)),
                    on_served,
                ),
                "MCP HTTP": (
                    await stack.enter_async_context(_clients(url, NEW, concurrency)),
                    on_served,
                ),
                "MCP HTTP, old revision": (
                    await stack.enter_async_context(_clients(url, OLD, concurrency)),
                    on_served,
                ),
            }
            if concurrency == 1:
                call, session = await stack.enter_async_context(_stdio())
                faces["MCP stdio"] = (call, [session])
            for tool in TOOLS:
                found = await _in_turns(tool, concurrency, faces)
                samples += found.values()
                base, routed = found["gRPC direct"].p50, found["gRPC by coordinator"].p50
                targets.append(
                    Target(
                        f"{tool} at {concurrency}: (by coordinator - 2 ms) / direct",
                        (routed - 2) / base,
                        1.5,
                    )
                )
    return samples, targets


async def _in_turns(
    tool: str, concurrency: int, faces: Mapping[str, tuple[Call, list[str]]]
) -> dict[str, Samples]:
    found = {face: Samples(f"{face}: {tool} at {concurrency}") for face in faces}
    rounds = max(CALLS // concurrency, 3)
    for number in range(rounds + 1):
        for face, (call, sessions) in faces.items():
            times = await asyncio.gather(
                *(cases.timed(call(tool, one)) for one in sessions[:concurrency])
            )
            if number:  # the first round warms up
                for took in times:
                    found[face].add(took)
            await cases.gap(0.02)
    return found


def _grpc(connection: Connection) -> Call:
    async def call(tool: str, session: str) -> object:
        make = cases.echo if tool == "echo" else cases.run
        return await cases.execute(connection, make(session))

    return call


@asynccontextmanager
async def _clients(url: str, mode: str, count: int) -> AsyncIterator[Call]:
    """Official clients, one for each call at once."""
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(Client(url, mode=mode)) for _ in range(count)]
        turn = itertools.cycle(made)
        yield _checked(lambda: next(turn))


@asynccontextmanager
async def _stdio() -> AsyncIterator[tuple[Call, str]]:
    with processes.place() as state:
        command = StdioServerParameters(
            command=str(Path(sys.executable).parent / "codegen-mcp"),
            args=["mcp", "--workspace", str(state)],
            env=dict(os.environ),
        )
        with open(os.devnull, "w") as quiet:
            async with Client(stdio_client(command, errlog=quiet), mode=NEW) as client:
                made = await client.call_tool("session_create", {})
                assert made.structured_content is not None
                yield _checked(lambda: client), str(made.structured_content["session_id"])


def _checked(pick: Callable[[], Client]) -> Call:
    async def call(tool: str, session: str) -> object:
        result = await pick().call_tool(tool, {**TOOLS[tool], "session_id": session})
        if result.is_error:
            raise RuntimeError(str(result.content))
        return result

    return call


@asynccontextmanager
async def _bare(url: str, count: int) -> AsyncIterator[Call]:
    """Kept connections that send what a client of the new revision would."""
    parts = urlsplit(url)
    free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(count):
        free.put_nowait(await asyncio.open_connection(parts.hostname, parts.port))

    async def call(tool: str, session: str) -> object:
        reader, writer = await free.get()
        try:
            for last in (False, True):
                try:
                    writer.write(_message(tool, session, parts.netloc))
                    head = await reader.readuntil(b"\r\n\r\n")
                    break
                except (asyncio.IncompleteReadError, ConnectionError):
                    if last:
                        raise
                    # The server closes what was idle for some seconds.
                    writer.close()
                    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            body = await reader.readexactly(int(fields[b"content-length"]))
            result: dict[str, Any] = json.loads(body)["result"]
            if result.get("isError"):
                raise RuntimeError(str(result))
            return result
        finally:
            free.put_nowait((reader, writer))

    try:
        yield call
    finally:
        while not free.empty():
            free.get_nowait()[1].close()


def _message(tool: str, session: str, host: str) -> bytes:
    meta = {
        "io.modelcontextprotocol/protocolVersion": NEW,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    arguments = {**TOOLS[tool], "session_id": session}
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    body = json.dumps(call).encode()
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: {NEW}\r\n"
        f"Mcp-Method: tools/call\r\nMcp-Name: {tool}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
