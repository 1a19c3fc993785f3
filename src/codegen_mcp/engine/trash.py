"""What is left of ended sessions: one owner gives it back, slowly and in the background."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.trees import remove_tree
from codegen_mcp.sandbox.base import HostIdentity

log = structlog.get_logger()

NICENESS = 15
RETRY_PAUSES_S = (0.1, 0.5, 2.0, 10.0)
"""A control group or mount may be busy a moment longer; then its remains wait for a restart."""

Dismantle = Callable[[Slot], Awaitable[bool]]
Release = Callable[[HostIdentity | None], Awaitable[None]]


@dataclass(slots=True)
class _Remains:
    directory: Path
    slot: Slot | None
    tries: int = field(default=0)


class Trash:
    """Deletes one directory at a time with low priority. An async context manager."""

    def __init__(
        self, dismantle: Dismantle, release: Release, freed: Callable[[], None] = lambda: None
    ) -> None:
        """Use ``SlotFactory.dismantle`` and ``release``; ``freed`` is called after each entry."""
        self._dismantle = dismantle
        self._freed = freed
        self._release = release
        self._queue: asyncio.Queue[_Remains] = asyncio.Queue()
        self._tasks = OwnedTasks()
        self._thread = ThreadPoolExecutor(1, "trash", initializer=_be_nice)
        self._pending = 0
        self._changed = asyncio.Condition()

    @property
    def pending(self) -> int:
        """Directories not deleted yet."""
        return self._pending

    async def __aenter__(self) -> Trash:
        """Begin to work."""
        self._tasks.spawn(self._work(), "trash")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop after the entry at hand; what is left lies in the trash for the next start."""
        await self._tasks.aclose()
        await asyncio.to_thread(self._thread.shutdown)

    def put(self, directory: Path, slot: Slot | None) -> None:
        """Take over a directory in the trash, and the slot that it was."""
        self._pending += 1
        self._queue.put_nowait(_Remains(directory, slot))

    async def progress(self) -> None:
        """Return when one more entry is gone, at once when there is none."""
        before = self._pending
        async with self._changed:
            await self._changed.wait_for(lambda: self._pending < before or not self._pending)

    async def flush(self) -> None:
        """Return when nothing is left to delete."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._pending)

    async def _work(self) -> None:
        while True:
            remains = await self._queue.get()
            try:
                done = await self._delete(remains)
            except Exception:
                log.exception("trash.failed", directory=str(remains.directory))
                done = False
            if not done and remains.tries < len(RETRY_PAUSES_S):
                pause_s = RETRY_PAUSES_S[remains.tries]
                remains.tries += 1
                self._tasks.spawn(self._again(remains, pause_s), "trash-retry")
                continue
            if not done:
                log.error("trash.given_up", directory=str(remains.directory))
            async with self._changed:
                self._pending -= 1
                self._changed.notify_all()
            self._freed()

    async def _again(self, remains: _Remains, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        self._queue.put_nowait(remains)

    async def _delete(self, remains: _Remains) -> bool:
        slot = remains.slot
        if slot is not None and not await self._dismantle(slot):
            return False
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, remove_tree, remains.directory)
        except OSError as error:
            log.warning("trash.not_removed", directory=str(remains.directory), error=error.strerror)
            return False
        if slot is not None:
            # Last, so that no file of the old owner can ever belong to a new session.
            await self._release(slot.identity)
        return True


def _be_nice() -> None:
    with contextlib.suppress(OSError):
        # Linux keeps niceness for each thread (sched(7)).
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
