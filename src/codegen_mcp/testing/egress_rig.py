"""Everything around the way out, for tests: an engine, an internet, its servers and their names.

``EgressRig`` runs a real engine in this process whose proxy connects from the near namespace of an
``OuterNetwork`` and asks a resolver of the test's. Servers note what reaches them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from codegen_mcp.bootstrap import Engine, open_engine
from codegen_mcp.bootstrap.egress import Network
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.core.task import Stream
from codegen_mcp.egress.host_network import HostDialer
from codegen_mcp.engine.base import (
    Constraints,
    ErrorEvent,
    OutputEvent,
    ResultEvent,
    TaskSubmission,
)
from codegen_mcp.settings import Settings
from codegen_mcp.testing.access_rig import Authority
from codegen_mcp.testing.outer_network import FORBIDDEN, Namespace, OuterNetwork

VALUE = "sk-live-7f3d9b2c41e8a6f05d-QWERTYUIOPas"
"""A secret that tests send through the broker, and must find nowhere."""
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class TableResolver:
    """Answers from a table; a name with several answers gives the next one each time."""

    def __init__(self, names: Mapping[str, Sequence[Sequence[str]] | str] | None = None) -> None:
        self.names: dict[str, Sequence[Sequence[str]] | str] = dict(names or {})
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Answer."""
        self.asked.append(host)
        found = self.names.get(host)
        if found is None:
            raise OSError(-2, "Name or service not known")
        if isinstance(found, str):
            return [found]
        turn = self.asked.count(host) - 1
        return found[min(turn, len(found) - 1)]


@dataclass(slots=True)
class Seen:
    """One request that reached a server."""

    address: str
    port: int
    head: bytes
    body: bytes = b""


class Servers:
    """Servers of a namespace. An async context manager that ends them."""

    def __init__(self, far: Namespace) -> None:
        self.seen: list[Seen] = []
        self.trapped: list[str] = []
        """Addresses that must never be reached, and were."""
        self._far = far
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Servers:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end_since(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def mark(self) -> int:
        """Remember which servers there are."""
        return len(self._servers)

    def end_since(self, mark: int) -> None:
        """End those that were started since."""
        while len(self._servers) > mark:
            self._servers.pop().close()

    async def start(
        self, address: str, port: int, handler: Handler, *, tls: ssl.SSLContext | None = None
    ) -> None:
        """Serve."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await handler(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                self._tasks.discard(task)
                writer.close()

        listener = self._far.listener(address, port)
        self._servers.append(await asyncio.start_server(serve, sock=listener, ssl=tls))

    async def web(
        self,
        address: str,
        port: int = 80,
        *,
        tls: ssl.SSLContext | None = None,
        answer: Callable[[Seen], bytes] | None = None,
    ) -> None:
        """Serve HTTP: note each request, answer with ``answer`` or with what was asked for."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _length(head)
                seen = Seen(address, port, head, await reader.readexactly(length))
                self.seen.append(seen)
                writer.write(ok(head) if answer is None else answer(seen))
                await writer.drain()

        await self.start(address, port, handle, tls=tls)

    async def echo(self, address: str, port: int) -> None:
        """Send back what comes."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                self.seen.append(Seen(address, port, data))
                writer.write(data)
                await writer.drain()

        await self.start(address, port, handle)

    async def traps(self, near: Namespace, near_address: str, ports: Sequence[int] = (80,)) -> None:
        """Listen where nothing must ever come, on both sides, the worker's own included."""
        places = [(self._far, one) for one in FORBIDDEN]
        places += [(near, "127.0.0.1"), (near, "::1"), (near, near_address)]
        for namespace, address in places:
            for port in ports:

                async def trap(
                    reader: asyncio.StreamReader,
                    writer: asyncio.StreamWriter,
                    address: str = address,
                ) -> None:
                    self.trapped.append(address)
                    writer.close()

                listener = namespace.listener(address, port)
                self._servers.append(await asyncio.start_server(trap, sock=listener))


def ok(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return an HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


@dataclass(slots=True)
class Ran:
    """How a run ended and what it printed."""

    result: ResultEvent
    stdout: str = ""
    stderr: str = ""
    denied: dict[str, str] = field(default_factory=dict)
    """``host:port`` to the reason."""


@dataclass(slots=True)
class EgressRig:
    """A real engine with an internet."""

    engine: Engine
    network: OuterNetwork
    resolver: TableResolver
    servers: Servers
    authority: Authority

    def certificate(self, *names: str) -> ssl.SSLContext:
        """Make what a server with these names serves with; the worker trusts its authority."""
        pem, key = self.authority.issue(
            names[0], names[0], names=[x509.DNSName(name) for name in names]
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, key)
        return context

    async def session(self, **config: Any) -> str:
        """Make a session."""
        return (await self.engine.sessions.create(SessionConfig(**config))).session_id

    async def end_sessions(self) -> None:
        """End all."""
        for view in self.engine.sessions.list():
            await self.engine.sessions.destroy(view.session_id, force=True)

    async def python(self, session_id: str, code: str, **options: Any) -> Ran:
        """Run Python with the network."""
        return await self.run(session_id, "run.python", {"code": code}, **options)

    async def shell(self, session_id: str, command: str, **options: Any) -> Ran:
        """Run a command with the network."""
        return await self.run(session_id, "run.shell", {"command": command}, **options)

    async def run(
        self,
        session_id: str,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        allow_network: bool = True,
        allow_hosts: Sequence[str] = (),
        secrets: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timeout_s: float = 30,
    ) -> Ran:
        """Run a tool to its end.

        Raises:
            WorkerError: The tool could not do its part.
        """
        task_id = await self.engine.tasks.submit(
            TaskSubmission(
                task_id="",
                session_id=session_id,
                tool=tool,
                arguments=arguments,
                env=env or {},
                constraints=Constraints(
                    timeout_s=timeout_s, allow_network=allow_network, allow_hosts=allow_hosts
                ),
                secrets=secrets,
            )
        )
        printed = {stream: bytearray() for stream in Stream}
        async with aclosing(self.engine.tasks.events(task_id, session_id)) as events:
            async for event in events:
                if isinstance(event, OutputEvent):
                    printed[event.stream] += event.data
                elif isinstance(event, ErrorEvent):
                    raise event.error
                elif isinstance(event, ResultEvent):
                    break
        assert isinstance(event, ResultEvent)
        return Ran(
            event,
            printed[Stream.STDOUT].decode("utf-8", "replace"),
            printed[Stream.STDERR].decode("utf-8", "replace"),
            {f"{one.host}:{one.port}": one.reason for one in event.metadata.network_denied},
        )


@asynccontextmanager
async def egress_rig(
    network: OuterNetwork, state: Path, *, names: Mapping[str, Any], **settings: Any
) -> AsyncIterator[EgressRig]:
    """Open a rig; ``names`` is the resolver's table, ``settings`` are the worker's."""
    authority = Authority(state.parent, "outer")
    resolver = TableResolver(names)
    values = {
        "base_workspace": state,
        "pool_size": 1,
        "max_sessions": 8,
        "egress_ca_file": str(authority.ca),
        **settings,
    }
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            open_engine(
                Settings(**values),
                network=Network(resolver=resolver, dialer=HostDialer(network.near.make_socket)),
            )
        )
        servers = await stack.enter_async_context(Servers(network.far))
        yield EgressRig(engine, network, resolver, servers, authority)
