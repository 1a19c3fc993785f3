"""What is kept of a session on disk, beside its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.sandbox.base import HostIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """Everything that another worker needs to adopt the session."""

    session_id: str
    workspace_id: str = ""
    user_id: str = ""
    interpreter: str
    """Its name, ``python3.11``."""
    limits: ResourceLimits
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    idle_timeout_s: float
    created_at_ms: int
    last_activity_ms: int
    incarnation: int = 1
    identity: HostIdentity | None = None
    """Who owns its files; None is the worker's own user."""
    recent_tasks: tuple[str, ...] = ()
    """Newest first."""
    durability: str = "interval"
    auto_restore: bool = False
    checkpoint_interval_s: float = 0.0
    """0 is never."""
    allow_network: bool = False
    allow_hosts: tuple[str, ...] = ()
    restored_from: str = ""
    """Id of the checkpoint that its files came from."""
    epoch: int = 1
    """The ownership under which the worker holds it: one more for each change of owner."""
    lost: str = ""
    """What that restore could not bring back, for people."""
