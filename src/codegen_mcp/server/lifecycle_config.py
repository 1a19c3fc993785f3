"""What the worker's side of WorkerLifecycle is told."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc

from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.version import __version__


async def _no_store() -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleConfig:
    """Whose worker this is, and how it speaks of itself."""

    coordinator: str
    """``host:port`` of the coordinator, or ``unix:/path``."""
    worker_id: str
    auth_token: str = field(default="", repr=False)
    """Of the registration, and bearer of every call; empty where the coordinator wants none."""
    grpc_address: str = ""
    """Where the coordinator can dial this worker; empty when it cannot."""
    dial_token: str = field(default="", repr=False)
    """What it must bear then."""
    credentials: grpc.ChannelCredentials | None = None
    """Of TLS; None is plain text."""
    start_id: str = field(default_factory=lambda: secrets.token_hex(16))
    store_id: Callable[[], Awaitable[str]] = _no_store
    """Names the store of the checkpoints; raises StoreUnavailable while it cannot be told."""
    tools: Sequence[str] = ()
    """Dotted names."""
    languages: Sequence[str] = ()
    """``python``, ``python3.12``."""
    limits: ResourceLimits | None = None
    """The most that a session may ask for."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Who holds which wall up, and the like."""
    version: str = __version__
    beat_s: float = 5.0
    """Between heartbeats where the coordinator names no interval."""
    answer_s: float = 10.0
    """How long a registration or heartbeat may take."""
    backoff_s: tuple[float, float] = (0.2, 10.0)
    """First and longest bound of the wait before another attempt; the wait is drawn from 0 to it
    (full jitter), and the bound doubles each time, up to two heartbeats (at least a second)."""
    grace_s: float = 30.0
    """How long a task whose TaskStream broke waits for the coordinator to come back; then its
    ``on_disconnect`` decides."""

    def __post_init__(self) -> None:
        if not self.coordinator or not self.worker_id:
            raise ValueError("coordinator and worker_id must not be empty")
        if self.dial_token and not self.grpc_address:
            raise ValueError("dial_token is of no use without grpc_address")
        if not 0 < self.backoff_s[0] <= self.backoff_s[1]:
            raise ValueError(f"backoff_s={self.backoff_s!r} must be positive and rise")
