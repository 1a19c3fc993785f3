"""A task's proxy without a sandbox, for tests that speak to it byte by byte."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from codegen_mcp.egress.config import EgressConfig
from codegen_mcp.egress.connector import Connector
from codegen_mcp.egress.host_network import HostDialer
from codegen_mcp.egress.patterns import parse_list
from codegen_mcp.egress.rules import Rules
from codegen_mcp.egress.task_egress import TaskEgress
from codegen_mcp.testing.egress_rig import Servers, TableResolver
from codegen_mcp.testing.outer_network import NEAR, OuterNetwork

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ANSWER_S = 10.0


@dataclass(slots=True)
class ProxyRig:
    """An open proxy and what is behind it."""

    port: int
    egress: TaskEgress
    resolver: TableResolver
    servers: Servers

    async def connect(self) -> Connection:
        """Connect to the proxy."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, data: bytes) -> bytes:
        """Send everything and return all that is answered until the end."""
        reader, writer = await self.connect()
        try:
            async with asyncio.timeout(ANSWER_S):
                writer.write(data)
                await writer.drain()
                return await _until_end(reader)
        finally:
            writer.close()

    async def get(self, url: str, *headers: str) -> bytes:
        """GET a URL through it, on a connection of its own."""
        host = url.removeprefix("http://").partition("/")[0]
        lines = [f"GET {url} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
        return await self.ask("\r\n".join(lines).encode())

    async def tunnel(self, target: str) -> tuple[bytes, Connection]:
        """Ask for a tunnel; returns the answer's head and the connection."""
        reader, writer = await self.connect()
        writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        async with asyncio.timeout(ANSWER_S):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                head = error.partial
        return head, (reader, writer)

    async def refused_tunnel(self, target: str) -> bytes:
        """Ask for a tunnel that must not be; returns the whole answer."""
        head, (reader, writer) = await self.tunnel(target)
        try:
            async with asyncio.timeout(ANSWER_S):
                return head + await _until_end(reader)
        finally:
            writer.close()

    @property
    def denied(self) -> dict[str, str]:
        """``host:port`` to the reason, as it is told."""
        return {f"{one.host}:{one.port}": one.reason for one in self.egress.denials()}

    @property
    def reached(self) -> list[tuple[str, int]]:
        """Addresses and ports of servers that something reached."""
        return [(one.address, one.port) for one in self.servers.seen]


async def _until_end(reader: asyncio.StreamReader) -> bytes:
    found = bytearray()
    try:
        while data := await reader.read(65536):
            found += data
    except ConnectionResetError:
        pass
    return bytes(found)


@asynccontextmanager
async def proxy_rig(
    network: OuterNetwork,
    *lists: Sequence[str],
    names: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
) -> AsyncIterator[ProxyRig]:
    """Open a proxy with these allow lists (the worker's, the session's, the task's)."""
    owners = ("worker", "session", "task")
    allow = [parse_list(one, owner, "list") for one, owner in zip(lists, owners, strict=False)]
    resolver = TableResolver(names)
    settings = EgressConfig(allow=allow[0], **(config or {}))
    connector = Connector(settings, resolver, HostDialer(network.near.make_socket))
    egress = TaskEgress(connector=connector, config=settings, rules=Rules(allow))
    with socket.socket() as entrance:
        entrance.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        entrance.bind(("127.0.0.1", 0))
        async with Servers(network.far) as servers, egress.opened(entrance):
            await servers.traps(network.near, NEAR, (80, 443, 22))
            port = int(entrance.getsockname()[1])
            yield ProxyRig(port, egress, resolver, servers)
