"""An announced upload while this worker holds it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from codegen_mcp.engine.artifacts.record import Announced

RECORD_GRACE_MS = 300_000
"""Bytes whose link has run out may be recorded for so long: they may have come at its end."""


@dataclass(slots=True)
class Upload:
    """Its lock is held while bytes come, and while they are recorded or thrown away."""

    announced: Announced
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def over(self, now_ms: int) -> bool:
        """Whether it can neither be sent nor recorded any more."""
        return now_ms >= self.announced.expires_at_ms + RECORD_GRACE_MS
