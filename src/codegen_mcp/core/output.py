"""Where a run's output goes."""

from __future__ import annotations

from typing import Protocol

from codegen_mcp.core.task import Stream


class OutputSink(Protocol):
    """Takes the bytes of a run as they are read from its pipes.

    Implementations: the engine's bounded journal, and ``testing``'s list. A sink never changes,
    splits off or drops bytes without counting them.
    """

    async def write(self, stream: Stream, data: bytes) -> None:
        """Take 1 byte to 64 KiB; wait here to hold the code back (its pipe fills up)."""

    def omit(self, stream: Stream, count: int) -> None:
        """Count bytes that were printed after the output limit and are not kept."""
