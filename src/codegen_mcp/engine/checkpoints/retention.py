"""Which checkpoints go: the oldest beyond the number that is kept, and what nothing needs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import structlog

from codegen_mcp.core.checkpoint import CheckpointId
from codegen_mcp.core.errors import Corrupt, NotFound, WrongState
from codegen_mcp.engine.checkpoints.catalog import INFO, TOMBSTONE, Catalog, Shelf

log = structlog.get_logger()


class Retention:
    """Hides what is too old, and deletes what is hidden and not needed."""

    def __init__(
        self, catalog: Catalog, *, keep: int, waiting: Callable[[str], Collection[CheckpointId]]
    ) -> None:
        """Wire it up.

        Args:
            catalog: Of the store.
            keep: Visible checkpoints of one session, at least 1.
            waiting: Of a session, what is on its way into the store, and what that needs there.
        """
        self._catalog = catalog
        self._keep = keep
        self._waiting = waiting

    async def retire(self, shelf: Shelf) -> bool:
        """Hide the oldest beyond the number kept; whether there is something to sweep.

        ``shelf`` is what the store has; where nothing is hidden, nothing is read for it.
        """
        if len(shelf.visible) <= self._keep and len(shelf.visible) == len(shelf.objects):
            return False
        for checkpoint_id in shelf.visible[: -self._keep]:
            await self._catalog.hide(checkpoint_id)
            shelf.objects[checkpoint_id].add(TOMBSTONE)
            log.info("checkpoint.retired", checkpoint=str(checkpoint_id))
        return True

    async def sweep(self, session_id: str, shelf: Shelf | None = None) -> None:
        """Delete hidden checkpoints whose archive no visible one needs.

        The tombstone of the highest number stays while the session may go on: numbers are not used
        twice.
        """
        shelf = await self._catalog.shelf(session_id) if shelf is None else shelf
        if not any(TOMBSTONE in suffixes for suffixes in shelf.objects.values()):
            return
        try:
            needed = await self._needed(shelf) | set(self._waiting(session_id))
        except (Corrupt, WrongState) as error:
            # Nobody knows what a checkpoint of unknown content needs: everything stays.
            log.warning("checkpoint.sweep_skipped", session_id=session_id, error=error.message)
            return
        except NotFound:
            return
        # What was begun may be cleaned away: only what counted once keeps its number for ever.
        issued = max(
            one.number
            for one, suffixes in shelf.objects.items()
            if not suffixes.isdisjoint((INFO, TOMBSTONE))
        )
        for checkpoint_id, suffixes in list(shelf.objects.items()):
            if TOMBSTONE not in suffixes or checkpoint_id in needed:
                continue
            last = checkpoint_id.number == issued
            gone = suffixes - {TOMBSTONE} if last else suffixes
            if gone:
                await self._catalog.remove(checkpoint_id, gone)

    async def clean(self, session_id: str, shelf: Shelf, epoch: int = 0) -> None:
        """Delete what was begun and never became a checkpoint; the caller has the session's lock.

        What waits for the store stays, and so does what other owners of the session write: under
        an epoch above ``epoch`` (0: there is no other owner), and under a lower one until this
        epoch has a checkpoint, for what is half there may still become the newest one.
        """
        waiting = self._waiting(session_id)
        newest = any(one.epoch == epoch for one in shelf.visible)
        for checkpoint_id, suffixes in list(shelf.objects.items()):
            other = checkpoint_id.epoch > epoch or (checkpoint_id.epoch < epoch and not newest)
            if epoch and other:
                continue
            if suffixes.isdisjoint((INFO, TOMBSTONE)) and checkpoint_id not in waiting:
                await self._catalog.remove(checkpoint_id, suffixes)
                del shelf.objects[checkpoint_id]

    async def _needed(self, shelf: Shelf) -> set[CheckpointId]:
        found: set[CheckpointId] = set()
        for checkpoint_id in shelf.visible:
            info = await self._catalog.info(checkpoint_id, listed=True)
            found |= {replace(checkpoint_id, number=number) for number in info.chain}
        return found
