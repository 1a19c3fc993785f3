"""Sizes of output: what is kept, what is waited for, what one piece is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """How the output of tasks is kept and handed on."""

    capture_bytes: int = 1 * MIB
    """Kept of each stream for the result: half from its beginning, half from its end."""
    capture_text_bytes: int = 3 * MIB // 2
    """Bound of the same when written as JSON text, so that two streams stay below 3 MiB."""
    window_bytes: int = 4 * MIB
    """How far the slowest attached reader may lag before the code waits for it."""
    patience_s: float = 2.0
    """How long one piece waits for a reader that takes nothing."""
    memory_bytes: int = 1 * MIB
    """Output of one running task in memory; older output is spooled."""
    finished_memory_bytes: int = 1 * MIB
    """Output of all finished tasks of one session in memory; older output is spooled."""
    event_bytes: int = 64 * KIB
    """Longest piece that a reader is given."""
    event_delay_s: float = 0.01
    """How long small output is collected into one piece; the first piece never waits."""
    spool_bytes: int = 128 * MIB
    """Output of one session on disk, beside its volume; the oldest is dropped first."""
    segment_bytes: int = 8 * MIB
    """Length of one file of it, about: the unit in which output is dropped."""
    disk_reserve_bytes: int = 256 * MIB
    """Free space on the host below which nothing is spooled any more."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise InvalidRequest(f"output setting {field.name} must be positive")
        if self.memory_bytes < 4 * self.event_bytes:
            raise InvalidRequest("output setting memory_bytes must be at least four event_bytes")
