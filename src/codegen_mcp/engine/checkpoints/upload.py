"""An archive on its way into the store while the rest of its draft is still written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from codegen_mcp.engine.uninterrupted import settled


class Upload:
    """Under way from the start; whoever has it calls ``done`` or ``undo``."""

    def __init__(
        self, put: Coroutine[Any, Any, None], discard: Callable[[], Awaitable[None]]
    ) -> None:
        """Begin.

        Args:
            put: Stores the archive.
            discard: Deletes it from the store, if it is there.
        """
        self._task = asyncio.ensure_future(put)
        self._discard = discard

    async def done(self) -> None:
        """Wait until it is stored. Raises what went wrong; a caller that leaves ends it."""
        await self._task

    async def stop(self) -> None:
        """Have nothing of it under way any more."""
        self._task.cancel()
        await settled(self._task)
        if not self._task.cancelled():
            self._task.exception()  # told, or not of interest any more

    async def undo(self) -> None:
        """Leave nothing of it in the store."""
        await self.stop()
        await self._discard()
