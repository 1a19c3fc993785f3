"""How many tasks there may be, and how much is remembered of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import MIB
from codegen_mcp.engine.output_config import OutputConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """Bounds of the task executor."""

    max_tasks: int = 512
    """Tasks of the whole worker that wait or run at once."""
    records: int = 256
    """Finished tasks that a session remembers."""
    record_bytes: int = 16 * MIB
    """Their results together; the oldest are forgotten first."""
    memory_bytes: int = 1 * MIB
    """Results of one session in memory; further ones are read from its journal."""
    result_bytes: int = 8 * MIB
    """Longest result, as JSON."""
    absorb_s: float = 2.0
    """How long a tool whose run was cancelled may take to answer with what there is."""
    stop_wait_s: float = 10.0
    """How long a stop waits for cancelled tasks before it cancels what they await once more."""
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        for name in ("max_tasks", "records", "record_bytes", "memory_bytes", "result_bytes"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"task setting {name} must be at least 1")
