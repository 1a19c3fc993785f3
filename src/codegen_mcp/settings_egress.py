"""Settings of the way out of sandboxes to the network. Part of ``settings.Settings``."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import GIB
from codegen_mcp.egress.hosts import BadHost
from codegen_mcp.egress.patterns import parse_list, parse_pattern


class EgressSettings(BaseSettings):
    """Which hosts code may reach, and which secrets are sent there for it."""

    egress_allow: str = ""
    """Space-separated hosts that tasks with ``allow_network`` may reach: ``example.com``,
    ``example.com:8443``, ``*.example.com``, ``*``; without a port, 80 and 443. Empty: there is no
    way out. Sessions and tasks only narrow it."""
    egress_internal: str = ""
    """Space-separated ``host:port`` of yours (exactly, no wildcard) that may have private
    addresses; they must be on ``egress_allow`` too."""
    egress_bytes: int = Field(default=1 * GIB, gt=0)
    """What one task may send and receive together; more cuts its connections."""
    egress_connections: int = Field(default=64, ge=1, le=10_000)
    """Connections of one session at once."""
    egress_secrets: str = ""
    """File of named secrets (TOML, mode 0600) that tasks may use without seeing them; see
    docs/concepts/egress.md."""
    egress_ca_file: str = ""
    """PEM file of authorities that servers are checked with beside the system's, where a secret is
    sent."""

    @field_validator("egress_allow")
    @classmethod
    def _patterns(cls, value: str) -> str:
        try:
            parse_list(value.split(), "worker", "EGRESS_ALLOW")
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        return value

    @field_validator("egress_internal")
    @classmethod
    def _origins(cls, value: str) -> str:
        internal_hosts(value)
        return value


def internal_hosts(value: str) -> frozenset[tuple[str, int]]:
    """Read hosts with one port each.

    Raises:
        ValueError: One is none.
    """
    found = set()
    for text in value.split():
        try:
            pattern = parse_pattern(text, ports=frozenset())
        except BadHost as error:
            raise ValueError(f"{text!r}: {error}") from None
        if "*" in pattern.host or pattern.ports is None or len(pattern.ports) != 1:
            raise ValueError(f"{text!r} must name one host and one port, like mirror.corp:443")
        found.add((pattern.host, min(pattern.ports)))
    return frozenset(found)
