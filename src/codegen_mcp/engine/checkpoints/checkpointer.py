"""Saves, restores and branches sessions: implements ``base.Checkpoints``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from types import TracebackType

import structlog

from codegen_mcp.core.checkpoint import (
    CheckpointInfo,
    Restored,
    check_checkpoint_name,
    parse_checkpoint_id,
)
from codegen_mcp.core.errors import (
    Corrupt,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
    WorkerError,
    WrongState,
)
from codegen_mcp.core.ids import new_session_id
from codegen_mcp.engine.checkpoints.base import Verified
from codegen_mcp.engine.checkpoints.catalog import INFO, Catalog, Shelf
from codegen_mcp.engine.checkpoints.checkpoint_config import CheckpointConfig
from codegen_mcp.engine.checkpoints.disk_errors import disk_errors, while_open
from codegen_mcp.engine.checkpoints.journal import unpack
from codegen_mcp.engine.checkpoints.library import Library
from codegen_mcp.engine.checkpoints.publisher import Publisher
from codegen_mcp.engine.checkpoints.recent import RecentManifests
from codegen_mcp.engine.checkpoints.restored_session import config_of, lost_since
from codegen_mcp.engine.checkpoints.restorer import Restorer
from codegen_mcp.engine.checkpoints.retention import Retention
from codegen_mcp.engine.checkpoints.session_locks import SessionLocks
from codegen_mcp.engine.checkpoints.sound_chains import SoundChains
from codegen_mcp.engine.checkpoints.spool import Spool
from codegen_mcp.engine.checkpoints.succession import Succession
from codegen_mcp.engine.checkpoints.taker import LIVE_STATE, Taken, take
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_installer import RestorePlan
from codegen_mcp.engine.session_ownership import stale
from codegen_mcp.engine.session_pool import SessionPool
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.uninterrupted import settled
from codegen_mcp.sandbox.volumes.threads import to_end
from codegen_mcp.stores.base import ObjectStore

log = structlog.get_logger()

TAKEN_AT_ONCE = 3
"""Each keeps one of the worker's threads busy, for a minute where code makes it long."""


class Checkpointer:
    """One for each worker. An async context manager; leaving it ends what is under way."""

    def __init__(
        self,
        sessions: SessionPool,
        store: ObjectStore,
        spool: Path,
        config: CheckpointConfig,
        room: Callable[[], int] | None = None,
    ) -> None:
        """Wire it up.

        Args:
            sessions: The worker's, entered before this is.
            store: Open; stays the caller's.
            spool: Directory of ours for drafts.
            config: Settings.
            room: Bytes that may still be written to the spool's disk; None is any number.
        """
        self._sessions = sessions
        self._store = store
        self._config = config
        self._spool = Spool(spool, room)
        self._tasks = OwnedTasks()
        self._catalog = Catalog(store)
        self._locks = SessionLocks()
        self._taking = asyncio.Semaphore(TAKEN_AT_ONCE)
        self._publisher = Publisher(
            self._catalog,
            self._tasks,
            self._locks,
            keeps=config.remote,
            most_waiting=config.keep,
            retry_s=config.retry_s,
            settle=self._stored_late,
        )
        self._restorer = Restorer(self._catalog, self._spool, copies=config.remote)
        self._retention = Retention(self._catalog, keep=config.keep, waiting=self._publisher.needed)
        self._library = Library(self._catalog, self._spool, self._locks)
        self._manifests = RecentManifests()
        self._chains = SoundChains(self._catalog, remote=config.remote)
        self._next = Succession(
            self._catalog, self._spool, self._retention, self._manifests, self._chains, config
        )
        self._last: dict[str, str] = {}
        self._retiring: dict[str, asyncio.Event] = {}
        """Set when what is too old since a session's last checkpoint was hidden."""
        self._stock: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Checkpointer:
        """Take up what a dead worker left."""
        for checkpoint_id, draft in await to_end(self._spool.open):
            if self._config.remote:
                await self._publisher.resume(checkpoint_id, draft)
            else:
                await to_end(draft.remove)
        self._stock = self._tasks.spawn(self._take_stock(), "checkpoint-stock")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End uploads; what waits for the store stays for the next start."""
        await self._tasks.aclose()
        for one in self._retiring.values():
            one.set()

    async def save(
        self,
        session_id: str,
        *,
        name: str = "",
        incremental: bool = False,
        trigger: str = "request",
    ) -> CheckpointInfo:
        """Save; durable and verified when this returns (``base.Checkpoints.save``)."""
        check_checkpoint_name(name)
        self._sessions.session(session_id)
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._locks.hold(session_id))
            session = self._sessions.session(session_id)  # a restore may have put another there
            with session.checkpointing(), while_open(session), disk_errors():
                epoch = session.record.epoch
                found = await self._next.look(session_id, epoch, incremental)
                order = await self._next.order(session, epoch, found, name, trigger)
                async with self._taking:
                    taken = await take(session, order, self._spool, self._publisher.begin)
                try:
                    await self._publisher.publish(
                        taken.draft,
                        taken.info,
                        taken.manifest,
                        away=found.away,
                        upload=taken.upload,
                    )
                except BaseException:
                    await settled(taken.closing)
                    raise
            found.shelf.objects[order.checkpoint_id] = {INFO}
            self._manifests.put(taken.manifest)
            self._last[session_id] = str(taken.info.checkpoint_id)
            await to_end(taken.draft.remove)
            # The next one waits for what nobody else does; who lists, for what is hidden.
            retiring = self._retiring[session_id] = asyncio.Event()
            after = self._after(session, taken, found.shelf, retiring, held.pop_all())
            self._tasks.spawn(after, "checkpoint-after")
        log.info(
            "checkpoint.saved",
            checkpoint=str(taken.info.checkpoint_id),
            parent=taken.info.parent,
            bytes=taken.info.size_bytes,
            freeze_ms=taken.info.freeze_ms,
            trigger=trigger,
        )
        return taken.info

    async def restore(
        self,
        checkpoint_id: str,
        *,
        create_new_session: bool,
        session_id: str = "",
        epoch: int = 0,
    ) -> Restored:
        """Restore (``base.Checkpoints.restore``)."""
        asked = parse_checkpoint_id(checkpoint_id)
        with ExitStack() as claims:
            if create_new_session:
                chosen = [session_id] if session_id else []
                claims.enter_context(self._sessions.ownership.claimed(chosen, epoch or 1))
                session_id = session_id or new_session_id()
            elif session_id not in {"", asked.session_id}:
                raise InvalidRequest(
                    f"session_id {session_id[:80]!r} is not that of checkpoint {checkpoint_id!r}; "
                    "set create_new_session to give the copy another one"
                )
            else:
                session_id = asked.session_id
            async with self._locks.hold(asked.session_id):
                info = await self._catalog.info(asked)
                return await self._restore(info, session_id, epoch)

    async def revive(self, session_id: str, *, epoch: int = 0) -> Restored | None:
        """Restore a session that is gone (``base.Checkpoints.revive``), once for all who ask."""
        async with self._locks.hold(session_id):
            living = [one for one in self._sessions.living if one.session_id == session_id]
            if living:
                return await self._restored_before(living[0])
            found = await self._catalog.newest(session_id)
            if found is None or not found.auto_restore:
                return None
            return await self._restore(found, session_id, epoch)

    async def fork(
        self, session_id: str, count: int, *, new_ids: Sequence[str] = ()
    ) -> Sequence[str]:
        """Copy a session (``base.Checkpoints.fork``)."""
        made = await self._sessions.fork(session_id, count, new_ids=new_ids)
        return [view.session_id for view in made]

    async def list(self, session_id: str = "") -> Sequence[CheckpointInfo]:
        """Newest first; damaged metadata is left out, and said in the log."""
        await self._retired(session_id)
        return await self._library.list(session_id)

    async def get(self, checkpoint_id: str) -> CheckpointInfo:
        """Look at one."""
        asked = parse_checkpoint_id(checkpoint_id)
        await self._retired(asked.session_id)
        return await self._catalog.info(asked)

    async def delete(self, checkpoint_id: str) -> None:
        """Delete one; what later ones need of it stays until they go."""
        asked = parse_checkpoint_id(checkpoint_id)
        async with self._locks.hold(asked.session_id):
            with suppress(Corrupt, WrongState):  # it may go all the same
                await self._catalog.info(asked)
            await self._catalog.hide(asked)
            self._next.note_issued(asked.session_id, asked.number)
            if self._last.get(asked.session_id) == checkpoint_id:
                visible = (await self._catalog.shelf(asked.session_id)).visible
                self._last[asked.session_id] = str(visible[-1]) if visible else ""
            await self._retention.sweep(asked.session_id)

    def verify(self, session_id: str = "") -> AsyncIterator[Verified]:
        """Read every byte of every checkpoint again."""
        return self._library.verify(session_id)

    async def export(self, checkpoint_id: str, target: Path) -> int:
        """Write one self-contained file; its bytes."""
        return await self._library.export(checkpoint_id, target)

    async def import_(self, source: Path) -> CheckpointInfo:
        """Take in an exported file."""
        return await self._library.import_(source)

    async def stock_taken(self) -> None:
        """Wait until what the store held at the start was seen, and cleaned."""
        if self._stock is not None:
            await asyncio.wait([self._stock])

    async def stored(self) -> int:
        """Wait for what waits for the store now; how much of it could not be stored at all."""
        await self._publisher.stored()
        return self._publisher.waiting

    def last(self, session_id: str) -> str:
        """Id of the newest checkpoint of a session; empty when there is none."""
        return self._last.get(session_id, "")

    async def _restore(self, info: CheckpointInfo, session_id: str, epoch: int) -> Restored:
        """Restore; the lock of the checkpoint's session is held."""
        asked = info.checkpoint_id
        epoch = await self._epoch(session_id, epoch, new=session_id != asked.session_id)
        with disk_errors():
            verified = await self._restorer.verify(info)
            try:
                packed = verified.journal
                journal = await to_end(lambda: unpack(packed)) if packed else b""
                lost = lost_since(info) if session_id == asked.session_id else ""

                async def fill(slot: Slot) -> None:
                    await self._restorer.fill(slot, verified)
                    if session_id == asked.session_id:
                        await self._next.hand_over(asked, self._sessions.living, slot.directory)

                plan = RestorePlan(
                    session_id=session_id,
                    config=config_of(info),
                    fill=fill,
                    restored_from=str(asked),
                    lost=lost,
                    journal=journal,
                    epoch=epoch,
                )
                await self._sessions.restore(plan)
            finally:
                verified.close()
        return Restored(session_id=session_id, info=info, lost=lost)

    async def _epoch(self, session_id: str, asked: int, *, new: bool) -> int:
        """Choose the epoch of a session that is restored.

        Raises:
            Conflict: One that nobody holds has checkpoints of a higher one than was asked for.
        """
        if new:
            return asked or 1
        held = self._sessions.ownership.held().get(session_id)
        if held is not None:
            return asked or held
        newest = (await self._catalog.shelf(session_id)).newest_epoch
        if asked and newest > asked:
            raise stale(session_id, asked, newest)
        return asked or newest or 1

    async def _restored_before(self, session: Session) -> Restored | None:
        """Tell what a living session was restored from; None where it was not."""
        record = session.record
        if not record.restored_from:
            return None
        source = parse_checkpoint_id(record.restored_from)
        try:
            info = await self._catalog.info(source, hidden=True)
        except (Corrupt, NotFound, WrongState):
            info = CheckpointInfo(checkpoint_id=source)
        return Restored(session_id=session.session_id, info=info, lost=record.lost)

    async def _retired(self, session_id: str) -> None:
        """Wait until nobody sees what the last checkpoint of a session (empty: any) retires."""
        for one in [self._retiring.get(session_id)] if session_id else [*self._retiring.values()]:
            if one is not None:
                await one.wait()

    async def _after(
        self,
        session: Session,
        taken: Taken,
        shelf: Shelf,
        retiring: asyncio.Event,
        held: AsyncExitStack,
    ) -> None:
        """Do what nobody waits for, then let go of the session's lock."""
        async with held:
            sweep = await self._retire(session.session_id, shelf, retiring)
            with suppress(OSError):  # only a hint
                await to_end(lambda: taken.live.save(session.directory / LIVE_STATE))
            try:
                await self._chains.note(taken.info)
                if sweep:
                    await self._retention.sweep(session.session_id)
            except WorkerError as error:
                log.warning("checkpoint.not_swept", error=error.message)
        await settled(taken.closing)

    async def _retire(self, session_id: str, shelf: Shelf, retiring: asyncio.Event) -> bool:
        """Hide older ones that have to go now; whether there is something to sweep."""
        try:
            return await self._retention.retire(shelf)
        except WorkerError as error:  # the new one is saved all the same
            log.warning("checkpoint.not_retired", error=error.message)
            return False
        finally:
            retiring.set()
            if self._retiring.get(session_id) is retiring:
                del self._retiring[session_id]

    async def _stored_late(self, info: CheckpointInfo) -> None:
        """Take note of a checkpoint that waited for the store; the session's lock is held."""
        session_id = info.checkpoint_id.session_id
        try:
            shelf = await self._catalog.shelf(session_id)
            if shelf.visible:
                self._last[session_id] = str(shelf.visible[-1])
            await self._retention.retire(shelf)
            await self._retention.sweep(session_id, shelf)
        except StoreUnavailable as error:
            log.warning("checkpoint.not_retired", error=error.message)

    async def _take_stock(self) -> None:
        """See what there is, and clear away what a dead worker left half-written."""
        try:
            shelves = await self._catalog.shelves()
            for session_id, shelf in shelves.items():
                if shelf.visible:
                    self._last.setdefault(session_id, str(shelf.visible[-1]))
            for session_id, shelf in shelves.items():
                if len(shelf.visible) == len(shelf.objects):
                    continue
                async with self._locks.hold(session_id):
                    fresh = await self._catalog.shelf(session_id)
                    if self._config.exclusive:
                        await self._retention.clean(session_id, fresh)
                    await self._retention.sweep(session_id, fresh)
        except StoreUnavailable as error:
            log.warning("checkpoint.stock_not_taken", error=error.message)
