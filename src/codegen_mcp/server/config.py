"""What the server is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from codegen_mcp.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the server listens and what it says of itself."""

    worker_id: str
    host: str = "127.0.0.1"
    """Address to bind, or ``unix:/path``."""
    port: int = 50052
    """0 takes a free one; not used with ``unix:``."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """SessionCapacity.metadata: what is enforced by whom, and the like."""
    version: str = __version__
    dial_token: str = field(default="", repr=False)
    """What callers must bear (``authorization: Bearer``); empty takes everybody who reaches it.
    Health and reflection are for all."""
    dial_token_required: bool = True
    """False: only from ``WorkerServer.serve_coordinator_alone`` on."""
    max_in_flight: int = 4096
    """Calls at once; more are answered RESOURCE_EXHAUSTED."""

    def __post_init__(self) -> None:
        if not self.worker_id:
            raise ValueError("worker_id must not be empty")
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
