"""The coordinator's gRPC server: built, started, drained and stopped in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.services import SERVICES, routed_services
from codegen_mcp.server.admission import Admission
from codegen_mcp.server.app import NOTICE_S, OPTIONS, reflected
from codegen_mcp.server.hooks import NoServerHooks, ServerHooks
from codegen_mcp.server.interceptors import EdgeInterceptor

log = structlog.get_logger()

LIFECYCLE = "codegen.v1.WorkerLifecycle"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """Where the coordinator listens."""

    host: str = "127.0.0.1"
    """Address to bind, or ``unix:/path``."""
    port: int = 50050
    """0 takes a free one; not used with ``unix:``."""
    max_in_flight: int = 16_384
    """Calls at once; more are answered RESOURCE_EXHAUSTED."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port!r} must be 0 to 65535")
        if self.max_in_flight < 1:
            raise ValueError(f"max_in_flight={self.max_in_flight!r} must be positive")

    @property
    def address(self) -> str:
        """As gRPC wants it."""
        if self.host.startswith("unix:"):
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class CoordinatorServer:
    """An async context manager: open means serving.

    It serves the workers' services by routing, ``WorkerLifecycle`` where one is given, health and
    reflection. Leaving the block without ``stop`` ends calls at once.
    """

    def __init__(
        self,
        gateway: Gateway,
        config: CoordinatorConfig | None = None,
        hooks: ServerHooks | None = None,
        *,
        lifecycle: Callable[[aio.Server], Any] | None = None,
        gates: Sequence[aio.ServerInterceptor],
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """Wire it.

        Args:
            gateway: What calls go through.
            config: Where it listens.
            hooks: Told of each call.
            lifecycle: Adds the service that workers join; None: they are not let in here.
            gates: What each call passes before its handler, in this order; one of them sets
                ``principal.CALLER``.
            credentials: For TLS; None serves plaintext.
        """
        self._gateway = gateway
        self._config = config or CoordinatorConfig()
        self._hooks = hooks or NoServerHooks()
        self._lifecycle = lifecycle
        self._gates = gates
        self._credentials = credentials
        self._admission = Admission(self._config.max_in_flight)
        self._health = health.aio.HealthServicer()
        self._server: aio.Server | None = None
        self.port = 0
        """The bound one; 0 before start and for a Unix socket."""

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return self._admission.in_flight

    @property
    def serving(self) -> bool:
        """Whether new work is taken (readiness)."""
        return self._server is not None and not self._admission.draining

    async def __aenter__(self) -> CoordinatorServer:
        edge = EdgeInterceptor(self._admission, self._hooks)
        server = aio.server(interceptors=[edge, *self._gates], options=OPTIONS)
        server.add_generic_rpc_handlers(tuple(routed_services(self._gateway)))
        services = [*SERVICES]
        if self._lifecycle is not None:
            self._lifecycle(server)
            services.append(LIFECYCLE)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, pool=reflected())
        try:
            address = self._config.address
            self.port = (
                server.add_insecure_port(address)
                if self._credentials is None
                else server.add_secure_port(address, self._credentials)
            )
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {self._config.address!r}: the port is taken or the address is "
                "not one of this machine; choose another port, or 0 for a free one"
            ) from error
        await server.start()
        self._server = server
        for name in services:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("coordinator.listening", address=self._config.address, port=self.port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop(0)

    async def drain(self) -> None:
        """Fail readiness and refuse new work; what is under way goes on. Idempotent."""
        if self._admission.draining:
            return
        self._admission.draining = True
        log.info("coordinator.draining", in_flight=self.in_flight)
        try:
            async with asyncio.timeout(NOTICE_S):
                await self._health.enter_graceful_shutdown()
        except TimeoutError:
            log.warning("coordinator.health_watcher_slow")

    async def stop(self, grace_s: float) -> None:
        """Drain, take no new call, give those under way so long, then end them. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        await self.drain()
        await server.stop(grace_s)
        log.info("coordinator.stopped")
