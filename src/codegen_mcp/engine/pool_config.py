"""Settings of the session pool."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import MIB, ResourceLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPoolConfig:
    """How many sessions, how long they live, and how many sandboxes are booted ahead."""

    max_sessions: int = 5
    """Live sessions, those being made included; adoption alone may exceed it."""
    pool_size: int = 2
    """Sandboxes that wait when nothing is known of the demand; 0 turns the pool off."""
    pool_max: int = 16
    """The most that demand can make of it."""
    pool_free_memory_bytes: int = 256 * MIB
    """Nothing is booted ahead while the host has less memory available."""
    idle_timeout_s: float = 1800.0
    """Without use for this long, a session is destroyed; its own setting wins."""
    max_idle_timeout_s: float = 7 * 24 * 3600.0
    """The longest that a caller may ask for."""
    checkpoint_interval_s: float = 0.0
    """How often a session that was changed is saved by itself; 0 is never. Its own setting wins."""
    max_age_s: float = 24 * 3600.0
    """After this a session is destroyed, in use or not."""
    grace_s: float = 20.0
    """How long running tasks may go on at a gentle destroy and at a drain."""
    waiting_runs: int = 16
    """Code runs that may wait in one session."""
    concurrent_runs: int = 0
    """Code runs at once on this worker; 0 is four for each core."""
    waiting_runs_total: int = 1024
    """Code runs of all sessions that may wait for one of those."""
    concurrent_boots: int = 0
    """Sandboxes that boot at once on demand; 0 is one for each core, at least two."""
    default_limits: ResourceLimits = field(default_factory=ResourceLimits)
    """Of a session that asks for none."""
    maximum_limits: ResourceLimits = field(default_factory=ResourceLimits)
    """The most that a session may ask for."""
    sweep_interval_s: float = 1.0
    """How often idle time, age and lost sandboxes are looked for."""
    keep_sessions: bool = True
    """Leave sessions on disk when the worker stops, for its next start to adopt."""

    def __post_init__(self) -> None:
        for name in ("max_sessions", "pool_max"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name}={getattr(self, name)!r} must be at least 1")
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, int | float) and (not math.isfinite(value) or value < 0):
                raise InvalidRequest(f"{entry.name}={value!r} must be 0 or more")
        for name in ("idle_timeout_s", "max_idle_timeout_s", "max_age_s", "sweep_interval_s"):
            if getattr(self, name) == 0:
                raise InvalidRequest(f"{name}=0 must be above 0")
        if self.idle_timeout_s > self.max_idle_timeout_s:
            raise InvalidRequest(
                f"idle_timeout_s={self.idle_timeout_s!r} is above "
                f"max_idle_timeout_s={self.max_idle_timeout_s!r}; raise that or lower it"
            )
        for limit in dataclasses.fields(ResourceLimits):
            default = getattr(self.default_limits, limit.name)
            if default > getattr(self.maximum_limits, limit.name):
                raise InvalidRequest(
                    f"default limit {limit.name}={default!r} is above the maximum "
                    f"{getattr(self.maximum_limits, limit.name)!r}; raise that or lower it"
                )

    @property
    def runs(self) -> int:
        """Code runs at once, resolved."""
        return self.concurrent_runs or 4 * (os.cpu_count() or 1)

    @property
    def boots(self) -> int:
        """Boots at once, resolved."""
        return self.concurrent_boots or max(2, os.cpu_count() or 1)
