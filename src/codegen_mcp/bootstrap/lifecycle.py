"""The worker as a coordinator's: whom its services take, and where it can be dialled."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from codegen_mcp.bootstrap.engine import Engine
from codegen_mcp.bootstrap.isolation import worker_facts
from codegen_mcp.coordinator.auth.reach import is_local
from codegen_mcp.coordinator.auth.tls import channel_credentials
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.engine.store_identity import StoreIdentity
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.lifecycle_agent import LifecycleAgent
from codegen_mcp.server.lifecycle_config import LifecycleConfig
from codegen_mcp.settings import Settings
from codegen_mcp.settings_lifecycle import AUTO, OFF

ANY_ADDRESS = frozenset({"0.0.0.0", "::", "[::]", ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """Whom the services of a worker take."""

    token: str
    """What its coordinator bears; empty where it joins none."""
    required: bool
    """From the start; else only once a coordinator that knows of it took the worker in."""

    @property
    def asks(self) -> bool:
        """Whether callers are asked from the start."""
        return bool(self.token) and self.required


def joining(settings: Settings) -> Joining:
    """Decide it: a worker that nobody else may call anyway need not wait for its coordinator."""
    open_to_all = not settings.auth.asks and (settings.is_loopback or settings.insecure_no_auth)
    return Joining(
        token=secrets.token_urlsafe(32) if settings.coordinator_addr else "",
        required=not open_to_all,
    )


@asynccontextmanager
async def open_agent(
    settings: Settings, engine: Engine, server: WorkerServer, token: str
) -> AsyncIterator[LifecycleAgent | None]:
    """Join the coordinator that the settings name; None when they name none.

    Raises:
        InvalidRequest: The token's file, or one of TLS, cannot be read.
    """
    if not settings.coordinator_addr:
        yield None
        return
    try:
        auth_token = settings.worker_auth_token
    except OSError as error:
        raise InvalidRequest(
            f"coordinator_token_file {settings.coordinator_token_file!r}: {error.strerror}"
        ) from None
    address = advertised(settings, server.port)
    interpreters = engine.host.catalog.interpreters
    tls = settings.client_tls
    config = LifecycleConfig(
        coordinator=settings.coordinator_addr,
        worker_id=settings.worker_id,
        auth_token=auth_token,
        grpc_address=address,
        dial_token=token if address else "",
        credentials=None if tls is None else channel_credentials(tls),
        store_id=StoreIdentity(engine.store).get,
        tools=[spec.name for spec in engine.tasks.specs],
        languages=sorted({name for one in interpreters for name in (one.language, one.name)}),
        limits=settings.maximum_limits,
        facts=worker_facts(settings, engine.host, engine.choice, engine.egress),
        beat_s=settings.worker_heartbeat_s,
        grace_s=settings.route_wait_s * 2,
    )
    async with AsyncExitStack() as stack:
        agent = LifecycleAgent(config, server, engine.sessions.ownership)
        yield await stack.enter_async_context(agent)


def beside(settings: Settings) -> bool:
    """Whether the coordinator is on this machine."""
    address = settings.coordinator_addr
    return address.startswith("unix:") or is_local(address.rpartition(":")[0].strip("[]"))


def advertised(settings: Settings, port: int) -> str:
    """Return where the coordinator can dial this worker; empty when it cannot."""
    if settings.advertise_addr == OFF:
        return ""
    if settings.advertise_addr != AUTO:
        return settings.advertise_addr
    host, coordinator = settings.host, settings.coordinator_addr
    together = beside(settings)
    if host.startswith("unix:"):
        return host if together else ""
    if is_local(host):
        return f"{_bracketed(host)}:{port}" if together else ""
    if host in ANY_ADDRESS:
        host = "127.0.0.1" if together else _way_to(coordinator)
    return f"{_bracketed(host)}:{port}" if host else ""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _way_to(coordinator: str) -> str:
    """Return this machine's address on the way there; empty when there is none now."""
    host, _, port = coordinator.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of UDP: nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return ""
