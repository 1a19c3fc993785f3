"""The event loop behind the SDK's calls that are not async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class Loop:
    """One event loop in a daemon thread, shared by all sandboxes of the process."""

    _lock: ClassVar = threading.Lock()
    _loop: ClassVar[asyncio.AbstractEventLoop | None] = None

    @classmethod
    def run(cls, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and return what it does; an interrupt here cancels it."""
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=cls._loop.run_forever, name="codegen-mcp-client", daemon=True
                ).start()
        future = asyncio.run_coroutine_threadsafe(work, cls._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
