"""What one worker sends for one task or stream, until its caller takes it.

The reader of a TaskStream must never wait for a caller: what it brings is put here, and how much
that can be is bounded by the credit that the worker was given. A worker that knows of no credit
may send more than a slow caller takes; then its log lines are left out, never its result.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from google.protobuf.message import Message

from codegen_mcp.core.errors import WorkerError
from codegen_mcp.core.limits import MIB
from codegen_mcp.server.convert import MAX_MESSAGE_BYTES

M = TypeVar("M", bound=Message)

WINDOW_BYTES = 1 * MIB
"""Credit of one task or stream: what may wait here for its caller."""
MOST_BYTES = WINDOW_BYTES + 2 * MAX_MESSAGE_BYTES
"""A sender with any credit left may send one message whatever its size."""


class Overrun(Exception):
    """The worker sent more than its credit."""


class Inbox(Generic[M]):
    """Messages in order; one reader."""

    def __init__(self) -> None:
        self._messages: deque[tuple[M, int]] = deque()
        self._bytes = 0
        self._error: WorkerError | None = None
        self._arrived = asyncio.Event()
        self.omitted = 0
        """Messages that were left out."""
        self.over = False
        """Whether its reader saw the end."""

    def put(self, message: M, *, omittable: bool = False) -> None:
        """Add one.

        Args:
            message: Kept until it is taken.
            omittable: Left out where there is no room; else that is an error.

        Raises:
            Overrun: There is no room.
        """
        size = message.ByteSize()
        if self._bytes + size > MOST_BYTES:
            if not omittable:
                raise Overrun
            self.omitted += 1
            return
        self._messages.append((message, size))
        self._bytes += size
        self._arrived.set()

    def fail(self, error: WorkerError) -> None:
        """Nothing more comes: raised once everything before it was taken."""
        self._error = self._error or error
        self._arrived.set()

    async def get(self) -> tuple[M, int]:
        """Take the next, with its size in bytes.

        Raises:
            WorkerError: Of ``fail``.
        """
        while not self._messages:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        message, size = self._messages.popleft()
        self._bytes -= size
        return message, size
