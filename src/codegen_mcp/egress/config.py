"""What bounds the way out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from codegen_mcp.core.limits import GIB, KIB
from codegen_mcp.egress.patterns import AllowList

PORT = 3128
"""Where the proxy is found inside a sandbox, on 127.0.0.1."""
TRUST = "/run/codegen/trust"
"""Where a sandbox finds the certificates that a run with secrets trusts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressConfig:
    """The worker's own allow list, and bounds of one task."""

    allow: AllowList
    """Nothing else is ever reached."""
    internal: frozenset[tuple[str, int]] = frozenset()
    """Hosts and ports of the operator that may have private addresses."""
    max_bytes: int = 1 * GIB
    """Both ways together."""
    max_connections: int = 64
    """At once."""
    header_bytes: int = 32 * KIB
    """Of one request or answer."""
    header_s: float = 10.0
    """From the first byte of a connection, or of a request, to the end of its header."""
    connect_s: float = 10.0
    """To resolve and connect."""
    idle_s: float = 120.0
    """Without a byte in either direction."""
    ca_file: Path | None = None
    """Authorities that the proxy trusts beside the system's, where it ends TLS."""
    trust: Path = field(default=Path("/etc/ssl/certs/ca-certificates.crt"))
    """The system's authorities, for the list that a sandbox is given."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_connections", "header_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
