"""Real workers and a real coordinator in one process, with a wire between them that can be cut."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.bootstrap.engine import Engine, open_engine
from codegen_mcp.bootstrap.router import Routing, open_routing
from codegen_mcp.coordinator.app import CoordinatorConfig, CoordinatorServer
from codegen_mcp.coordinator.auth.base import Peer
from codegen_mcp.coordinator.auth.grpc_auth import AuthInterceptor
from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.dialled_link import DialledLink
from codegen_mcp.coordinator.embedded import EmbeddedConfig, EmbeddedWorker
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.core.errors import Unauthenticated
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.settings import Settings
from codegen_mcp.testing.cut_proxy import CutProxy
from codegen_mcp.testing.wire import Wire
from codegen_mcp.testing.worker import TEST_SETTINGS

ALICE, BOB = Principal(name="alice"), Principal(name="bob")
BEAT_S, LOST_AFTER_S = 0.2, 1.2
WAIT_S = 20.0
ROUTING = frozenset({"route_wait_s", "restores_at_once", "worker_lost_after_s"})
"""Settings of the coordinator; all others are the workers'."""


class ByName:
    """An authenticator for tests: the bearer token is the principal's name."""

    asks = True

    async def authenticate(self, token: str | None, peer: Peer) -> Principal:
        """Believe it."""
        if not token:
            raise Unauthenticated("no token")
        return Principal(name=token)


@dataclass(slots=True, kw_only=True)
class Member:
    """One worker."""

    worker_id: str
    engine: Engine
    server: WorkerServer
    proxy: CutProxy
    """Between it and the coordinator."""
    token: str
    stack: AsyncExitStack
    joined: EmbeddedWorker | None = None


@dataclass(slots=True)
class CoordinatorRig:
    """A coordinator with its workers. What they keep on disk outlives both."""

    base: Path
    changes: dict[str, Any]
    members: dict[str, Member] = field(default_factory=dict)
    address: str = ""
    _routing: Routing | None = None
    _coordinator: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def routing(self) -> Routing:
        """Of the coordinator that runs."""
        assert self._routing is not None
        return self._routing

    @property
    def gateway(self) -> Gateway:
        """Of the coordinator that runs."""
        return self.routing.gateway

    async def start_coordinator(self) -> None:
        """Open it over the directory that there is, and let the workers join."""
        settings = Settings(
            **{
                "base_workspace": self.base / "coordinator",
                "worker_heartbeat_s": BEAT_S,
                "worker_lost_after_s": LOST_AFTER_S,
                "route_wait_s": 5.0,
                **{name: value for name, value in self.changes.items() if name in ROUTING},
            }
        )
        stack = AsyncExitStack()
        routing = await stack.enter_async_context(open_routing(settings, settings.base_workspace))
        config = CoordinatorConfig(port=0)
        server = await stack.enter_async_context(
            CoordinatorServer(routing.gateway, config, gates=[AuthInterceptor(ByName())])
        )
        self._routing, self._coordinator = routing, stack
        self.address = f"127.0.0.1:{server.port}"
        for member in self.members.values():
            await self.join(member)

    async def stop_coordinator(self) -> None:
        """End it; the workers go on, without a coordinator."""
        for member in self.members.values():
            await self.leave(member)
        await self._coordinator.aclose()
        self._routing = None

    async def start_worker(self, worker_id: str, **changes: Any) -> Member:
        """Open a worker on its state directory, and let it join."""
        settings = Settings(
            **{
                **TEST_SETTINGS,
                "max_sessions": 4,
                "volume": "plain",  # others on this machine may hold a mount for long
                "worker_id": worker_id,
                "base_workspace": self.base / worker_id,
                "checkpoint_dir": str(self.base / "store"),
                **{name: value for name, value in self.changes.items() if name not in ROUTING},
                **changes,
            }
        )
        stack = AsyncExitStack()
        engine = await stack.enter_async_context(open_engine(settings))
        config = ServerConfig(worker_id=worker_id, port=0, dial_token=secrets.token_hex(8))
        server = await stack.enter_async_context(
            WorkerServer(
                engine.sessions,
                engine.tasks,
                config,
                artifacts=engine.artifacts,
                checkpoints=engine.checkpoints,
            )
        )
        proxy = await stack.enter_async_context(CutProxy(server.port))
        member = Member(
            worker_id=worker_id,
            engine=engine,
            server=server,
            proxy=proxy,
            token=config.dial_token,
            stack=stack,
        )
        self.members[worker_id] = member
        await self.join(member)
        return member

    async def join(self, member: Member) -> None:
        """Register it, as a new start."""
        joined = EmbeddedWorker(
            self.routing.workers,
            self.routing.router.fencing,
            member.engine.sessions.ownership,
            member.server.capacity,
            lambda: member.server.draining,
            EmbeddedConfig(
                worker_id=member.worker_id,
                address=f"127.0.0.1:{member.proxy.port}",
                dial_token=member.token,
                store_id="shared",
                tools=frozenset(spec.name for spec in member.engine.tasks.specs),
                metadata={},
            ),
        )
        await joined.__aenter__()
        member.joined = joined

    async def leave(self, member: Member) -> None:
        """End its heartbeats, without a word."""
        joined, member.joined = member.joined, None
        if joined is not None:
            await joined.__aexit__(None, None, None)

    async def silence(self, worker_id: str) -> None:
        """End its heartbeats and cut its wire: to the coordinator it is as if it were dead.

        Returns when the coordinator has noticed the cut: a call before that counts as sent.
        """
        member = self.members[worker_id]
        await self.leave(member)
        await member.proxy.cut()
        links = [
            worker.link
            for worker in self.routing.workers.all()
            if worker.owner.worker_id == worker_id and isinstance(worker.link, DialledLink)
        ]

        async def cut() -> bool:
            return not any(link.connected for link in links)

        await until(cut)

    async def stop_worker(self, worker_id: str) -> None:
        """End it without a word to the coordinator; what it keeps on disk stays."""
        member = self.members.pop(worker_id)
        await self.leave(member)
        await member.stack.aclose()

    async def aclose(self) -> None:
        """End everything."""
        for worker_id in list(self.members):
            await self.stop_worker(worker_id)
        await self._coordinator.aclose()

    @asynccontextmanager
    async def wire(self, principal: str) -> AsyncIterator[Wire]:
        """Every stub of the coordinator, as that caller."""
        bearer: Any = [
            BearerUnaryUnary(principal),
            BearerUnaryStream(principal),
            BearerStreamUnary(principal),
        ]
        async with aio.insecure_channel(self.address, interceptors=bearer) as channel:
            yield Wire(channel)


class _Bearer:
    """Adds a token to each call."""

    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)

    def _with(self, details: Any) -> Any:
        return details._replace(metadata=(*(details.metadata or ()), *self._metadata))


class BearerUnaryUnary(_Bearer, aio.UnaryUnaryClientInterceptor):
    """To unary calls."""

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Add it."""
        return await continuation(self._with(details), request)


class BearerUnaryStream(_Bearer, aio.UnaryStreamClientInterceptor):
    """To calls with many answers."""

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        """Add it."""
        return await continuation(self._with(details), request)


class BearerStreamUnary(_Bearer, aio.StreamUnaryClientInterceptor):
    """To calls with many requests."""

    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        """Add it."""
        return await continuation(self._with(details), requests)


@asynccontextmanager
async def coordinator_rig(*worker_ids: str, **changes: Any) -> AsyncIterator[CoordinatorRig]:
    """Start a coordinator and these workers, who share a store of checkpoints.

    Args:
        worker_ids: One worker each.
        changes: Settings, of the workers or of the routing.
    """
    base = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="codegen-rig-", dir="/var/tmp"))
    base.chmod(0o711)
    rig = CoordinatorRig(base, changes)
    try:
        await rig.start_coordinator()
        for worker_id in worker_ids:
            await rig.start_worker(worker_id)
        yield rig
    finally:
        await rig.aclose()
        await (await asyncio.create_subprocess_exec("rm", "-rf", str(base))).wait()


async def create(gateway: Gateway, principal: Principal = ALICE, **fields: Any) -> str:
    """Make a session; returns its id."""
    worker_id = fields.pop("worker_id", "")
    config = sessions_pb.SessionConfig(**fields)
    request = sessions_pb.CreateSessionRequest(worker_id=worker_id, config=config)
    answer = await gateway.unary(principal, "SessionManagement/CreateSession", request)
    assert isinstance(answer, sessions_pb.CreateSessionResponse)
    return answer.session_id


async def save(gateway: Gateway, session_id: str, principal: Principal = ALICE) -> str:
    """Take a checkpoint; returns its id."""
    request = sessions_pb.CheckpointRequest(session_id=session_id)
    answer = await gateway.unary(principal, "SessionManagement/CheckpointSession", request)
    assert isinstance(answer, sessions_pb.CheckpointResponse)
    return answer.checkpoint_id


async def status(
    gateway: Gateway, session_id: str, principal: Principal = ALICE
) -> sessions_pb.SessionStatusResponse:
    """Ask for a session as it is now."""
    request = sessions_pb.SessionStatusRequest(session_id=session_id)
    answer = await gateway.unary(principal, "SessionManagement/GetSessionStatus", request)
    assert isinstance(answer, sessions_pb.SessionStatusResponse)
    return answer


def python(session_id: str, code: str, **fields: Any) -> tasks_pb.TaskRequest:
    """Make a request to run Python."""
    tool = tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))
    return tasks_pb.TaskRequest(session_id=session_id, typed_request=tool, **fields)


async def execute(
    gateway: Gateway, request: tasks_pb.TaskRequest, principal: Principal = ALICE
) -> list[tasks_pb.TaskResponse]:
    """Run a tool; returns the whole stream."""
    stream = gateway.tasks(principal, "TaskExecution/ExecuteTask", request)
    return [message async for message in stream]


async def printed(gateway: Gateway, session_id: str, code: str, **fields: Any) -> str:
    """Run Python that ends well; returns what it printed."""
    last = (await execute(gateway, python(session_id, code, **fields)))[-1]
    assert last.result.status == tasks_pb.TaskResult.STATUS_SUCCESS, last
    return last.result.typed_response.run_python.stdout


async def until(what: Callable[[], Awaitable[bool]], seconds: float = WAIT_S) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: It did not come about.
    """
    async with asyncio.timeout(seconds):
        while True:
            if await what():
                return
            await asyncio.sleep(0.02)
