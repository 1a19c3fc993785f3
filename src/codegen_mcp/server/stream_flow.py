"""How much may be on its way over one TaskStream: a bounded queue, and credit for each call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from google.protobuf.message import Message

from codegen_mcp.core.gathering import gather_s

M = TypeVar("M", bound=Message)

QUEUE_BYTES = 1024 * 1024
"""Of messages that wait for the one sender; one more is taken whatever its size."""

BATCH_BYTES = 256 * 1024
BATCH_MESSAGES = 256
"""Of those that are sent together; a larger one goes alone."""


class Outbox(Generic[M]):
    """Messages on their way to one sender; whoever puts waits in line while it is full."""

    def __init__(self, limit_bytes: int = QUEUE_BYTES) -> None:
        self._limit = limit_bytes
        self._messages: deque[tuple[M, int]] = deque()
        self._bytes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._busy = False
        self.closed = False

    async def put(self, message: M) -> bool:
        """Add a message; False when the stream has ended and nobody will send it."""
        while not self.closed and (self._bytes >= self._limit or self._waiting):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:
                    self._wake_next()  # its turn had come: the next one takes it
                raise
            if self._bytes < self._limit:
                break
        if self.closed:
            return False
        self.put_now(message)
        self._wake_next()
        return True

    def put_now(self, message: M) -> None:
        """Add a small one without waiting; lost when the stream has ended."""
        if self.closed:
            return
        size = message.ByteSize()
        self._messages.append((message, size))
        self._bytes += size
        self._emptied.clear()
        self._filled.set()

    async def get(self) -> M | None:
        """Take the next, when the one before it was sent; None when it is closed."""
        batch = await self.get_batch(several=False)
        return batch[0] if batch else None

    async def get_batch(
        self, *, several: bool, under_way: Callable[[], int] = lambda: 0
    ) -> list[M]:
        """Take the next and, if ``several``, those that wait behind it; empty when it is closed.

        Where the last batch had more than one, this one waits a moment for more: at that rate a
        message costs more than the moment. How long depends on how many calls are ``under_way``.
        """
        while not self._messages and not self.closed:
            self._emptied.set()
            self._filled.clear()
            await self._filled.wait()
        if several and self._busy and (pause := gather_s(under_way())):
            await asyncio.sleep(pause)
        if self.closed:
            return []
        batch: list[M] = []
        room = BATCH_BYTES
        while self._messages and len(batch) < (BATCH_MESSAGES if several else 1):
            message, size = self._messages[0]
            if batch and size > room:
                break
            self._messages.popleft()
            self._bytes -= size
            room -= size
            batch.append(message)
        self._busy = len(batch) > 1
        self._wake_next()
        return batch

    async def flush(self) -> None:
        """Return when everything was sent, or nothing is any more."""
        while not self.closed and not self._emptied.is_set():
            await self._emptied.wait()

    def close(self) -> list[M]:
        """Nothing more is sent: everybody who waits is let go; what was not sent. Idempotent."""
        self.closed = True
        unsent = [message for message, _ in self._messages]
        self._messages.clear()
        self._filled.set()
        self._emptied.set()
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)
        self._waiting.clear()
        return unsent

    def _wake_next(self) -> None:
        while self._waiting and self._bytes < self._limit:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class Credit:
    """Bytes that may still be sent; None is without bound."""

    def __init__(self, available: int | None) -> None:
        self._available = available
        self._granted = asyncio.Event()
        self._released = False

    def grant(self, count: int) -> None:
        """Allow more."""
        if self._available is not None and count > 0:
            self._available += count
            self._granted.set()

    async def take(self, count: int) -> None:
        """Wait until there is any left, then use up so much of it."""
        while self._available is not None and self._available <= 0 and not self._released:
            self._granted.clear()
            await self._granted.wait()
        if self._available is not None:
            self._available -= count

    def release(self) -> None:
        """Nothing is counted any more."""
        self._released = True
        self._granted.set()
