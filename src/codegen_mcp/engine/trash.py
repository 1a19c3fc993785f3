"""What is left of ended sessions: one owner gives it back, slowly and in the background."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.slot_factory import SlotFactory
from codegen_mcp.sandbox.volumes.trees import remove_tree

log = structlog.get_logger()

NICENESS = 15
RETRY_PAUSES_S = (0.1, 0.5, 2.0, 10.0)
"""A control group or mount may be busy a moment longer; then its remains wait for a restart."""


@dataclass(slots=True)
class _Remains:
    directory: Path
    slot: Slot | None
    tries: int = field(default=0)


class Trash:
    """Deletes one directory at a time with low priority. An async context manager."""

    def __init__(
        self, new_place: Callable[[], Path], factory: SlotFactory, freed: Callable[[], None]
    ) -> None:
        """Wire it up.

        Args:
            new_place: Returns a free name in the trash directory.
            factory: Takes slots apart.
            freed: Called whenever something was given back.
        """
        self._new_place = new_place
        self._factory = factory
        self._freed = freed
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
        """Move a directory out of the way, and take it over with the slot that it was."""
        if slot is None:
            with contextlib.suppress(OSError):
                directory.rmdir()  # a creation that failed early has left nothing in it
                return
        place = self._new_place()
        if directory.parent == place.parent:
            place = directory
        else:
            try:
                directory.rename(place)
            except OSError as error:
                log.error("trash.not_moved", directory=str(directory), error=error.strerror)
                place = directory
            else:
                if slot is not None:
                    slot.moved(place)
        self._pending += 1
        self._queue.put_nowait(_Remains(place, slot))

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
        if slot is not None:
            slot.volume.abandon()
        if slot is not None and not await self._factory.dismantle(slot):
            return False
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, remove_tree, remains.directory)
        except OSError as error:
            log.warning("trash.not_removed", directory=str(remains.directory), error=error.strerror)
            return False
        if slot is not None:
            # Last, so that no file of the old owner can ever belong to a new session.
            await self._factory.release(slot.identity)
        return True


def _be_nice() -> None:
    with contextlib.suppress(OSError):
        # Linux keeps niceness for each thread (sched(7)).
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
