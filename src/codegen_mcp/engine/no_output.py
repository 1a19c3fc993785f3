"""The output of a task whose tool runs no code: there is none, but its readers wait for the end."""

from __future__ import annotations

import asyncio

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.task import Stream
from codegen_mcp.engine.output import NOTHING
from codegen_mcp.tools.base import CapturedOutput


class NoReader:
    """Has the face of ``OutputReader``; is given nothing."""

    __slots__ = ("_waiter",)

    behind = False

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def take(self) -> None:
        """There is never a piece."""
        return

    async def fetch(self) -> None:
        """Nothing is spooled."""

    async def wait(self) -> None:
        """Return at ``wake``."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """End ``wait``."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class NoOutput:
    """Has the face of ``OutputJournal``; costs next to nothing."""

    __slots__ = ("_readers",)

    memory_bytes = 0
    written = False

    def __init__(self) -> None:
        self._readers: list[NoReader] = []

    @property
    def readers(self) -> int:
        """Readers attached now."""
        return len(self._readers)

    def attach(self, stdout_offset: int | None, stderr_offset: int | None) -> NoReader:
        """Add a reader."""
        if stdout_offset or stderr_offset:
            raise InvalidRequest(
                f"offsets {stdout_offset} and {stderr_offset} are not 0, but this task's tool "
                "prints nothing; pass 0"
            )
        reader = NoReader()
        self._readers.append(reader)
        return reader

    def detach(self, reader: NoReader) -> None:
        """Forget a reader; idempotent."""
        if reader in self._readers:
            self._readers.remove(reader)

    def wake(self) -> None:
        """Wake every reader."""
        for reader in self._readers:
            reader.wake()

    def end(self) -> None:
        """The task is over."""
        self.wake()

    def release(self) -> None:
        """Nobody is held."""

    def captured(self) -> CapturedOutput:
        """Nothing."""
        return NOTHING

    def printed(self, stream: Stream) -> int:
        """Nothing."""
        return 0

    def logged(self, stream: Stream) -> int:
        """Nothing."""
        return 0

    async def settle(self) -> None:
        """There is nothing to move."""

    def drop(self) -> None:
        """There is nothing to free."""
