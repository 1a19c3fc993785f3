"""What all sessions of a worker share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from codegen_mcp.core.clock import Clock
from codegen_mcp.egress.service import Egress
from codegen_mcp.engine.hooks import EngineHooks
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.run_line import Line
from codegen_mcp.engine.slot import Slot
from codegen_mcp.sandbox.base import Sandbox

Boot = Callable[[Slot], Coroutine[Any, Any, Sandbox]]
"""Boots a new sandbox in a slot (``SlotFactory.boot``)."""


class Gate(Protocol):
    """What the worker as a whole decides for its sessions."""

    @property
    def draining(self) -> bool:
        """Whether new tasks are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionServices:
    """What all sessions of a worker share."""

    clock: Clock
    hooks: EngineHooks
    tasks: OwnedTasks
    boot: Boot
    gate: Gate
    runs: Line
    """The worker's line."""
    waiting_limit: int
    """Runs that may wait in one session."""
    isolation: Mapping[str, str]
    egress: Egress | None = None
    """The worker's way out; None where nothing was said of one."""
