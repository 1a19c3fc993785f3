"""The worker's way out, made from its settings."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.egress.base import Dialer, Resolver
from codegen_mcp.egress.config import EgressConfig
from codegen_mcp.egress.host_network import HostDialer, HostResolver
from codegen_mcp.egress.patterns import parse_list
from codegen_mcp.egress.secrets import load_secrets
from codegen_mcp.egress.service import Egress
from codegen_mcp.sandbox.base import SandboxBackend
from codegen_mcp.settings import Settings
from codegen_mcp.settings_egress import internal_hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What names and connections of the way out go through."""

    resolver: Resolver = field(default_factory=HostResolver)
    dialer: Dialer = field(default_factory=HostDialer)


async def make_egress(
    settings: Settings, backend: SandboxBackend, network: Network | None = None
) -> Egress:
    """Make it; it opens nothing by itself, and what it needs of the host it makes when asked.

    Raises:
        InvalidRequest: The file of secrets, or of authorities, cannot be used.
    """
    network = network or Network()
    secrets = {}
    if settings.egress_secrets:
        secrets = dict(await asyncio.to_thread(load_secrets, Path(settings.egress_secrets)))
    authorities = Path(settings.egress_ca_file) if settings.egress_ca_file else None
    if authorities is not None and not authorities.is_file():
        raise InvalidRequest(f"EGRESS_CA_FILE={settings.egress_ca_file!r} is no file")
    unavailable = ""
    if not getattr(backend, "carries_egress", False):
        unavailable = (
            f"sandboxes of backend {backend.name!r} have no way out to the network; run the worker "
            "with --sandbox bubblewrap"
        )
    return Egress(
        EgressConfig(
            allow=parse_list(settings.egress_allow.split(), "worker", "EGRESS_ALLOW"),
            internal=internal_hosts(settings.egress_internal),
            max_bytes=settings.egress_bytes,
            max_connections=settings.egress_connections,
            ca_file=authorities,
        ),
        secrets,
        network.resolver,
        network.dialer,
        unavailable=unavailable,
    )
