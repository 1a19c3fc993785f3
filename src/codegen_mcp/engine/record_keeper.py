"""A session's record and its file: changed one at a time, in memory only what is on disk."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import Unavailable
from codegen_mcp.engine import session_store
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.sandbox.volumes.threads import to_end


class RecordKeeper:
    """Holds one record."""

    def __init__(self, record: SessionRecord, clock: Clock, *, durable: bool) -> None:
        """``durable``: the file is known to be on disk, not only in the page cache."""
        self.record = record
        self._lock = asyncio.Lock()
        self._clock = clock
        self._saved_at = clock.monotonic() if durable else -math.inf

    def unsaved_s(self, last_ms: int) -> float:
        """How long a use at ``last_ms`` may have been unsaved; infinite for a file not on disk."""
        if self._saved_at > -math.inf and last_ms == self.record.last_activity_ms:
            return 0.0
        return self._clock.monotonic() - self._saved_at

    async def store(
        self, directory: Callable[[], Path], change: Callable[[], SessionRecord]
    ) -> None:
        """Write what ``change`` returns durably, then take it over.

        Raises:
            Unavailable: It cannot be written; nothing was changed.
        """
        async with self._lock:
            record = change()
            path = directory()
            try:
                await to_end(lambda: session_store.save(path, record, durable=True))
            except OSError as error:
                raise Unavailable(
                    f"the record of session {record.session_id!r} cannot be written "
                    f"({error.strerror}); free disk on the worker and try again"
                ) from error
            self.record = record
            self._saved_at = self._clock.monotonic()
