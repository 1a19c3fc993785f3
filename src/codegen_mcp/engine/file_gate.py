"""Keeps a session's file calls from changing anything while its files must stand still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FileGate:
    """Many may change files at once, or one may hold them."""

    def __init__(self) -> None:
        self._changes = 0
        self._holders = 0
        self._moved = asyncio.Event()
        self._lock = asyncio.Lock()

    @property
    def held(self) -> bool:
        """Whether changes wait now."""
        return self._holders > 0

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Change files inside; waits while they are held."""
        while self._holders:
            self._moved.clear()
            await self._moved.wait()
        self._changes += 1
        try:
            yield
        finally:
            self._changes -= 1
            self._moved.set()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """No file call changes anything inside; waits for those under way. One holder at a time."""
        self._holders += 1
        try:
            async with self._lock:
                while self._changes:
                    self._moved.clear()
                    await self._moved.wait()
                yield
        finally:
            self._holders -= 1
            self._moved.set()
