"""Saves, restores and branches sessions: implements ``base.Checkpoints``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import structlog

from codegen_mcp.core.checkpoint import (
    CheckpointId,
    CheckpointInfo,
    Entry,
    Restored,
    check_checkpoint_name,
    parse_checkpoint_id,
)
from codegen_mcp.core.errors import (
    Corrupt,
    NotFound,
    StoreUnavailable,
    WorkerError,
    WrongState,
)
from codegen_mcp.core.ids import new_session_id
from codegen_mcp.engine.checkpoints.base import Verified
from codegen_mcp.engine.checkpoints.catalog import ARCHIVE, INFO, Catalog, Shelf
from codegen_mcp.engine.checkpoints.disk_errors import disk_errors, while_open
from codegen_mcp.engine.checkpoints.journal import unpack
from codegen_mcp.engine.checkpoints.library import Library
from codegen_mcp.engine.checkpoints.live_state import LiveState
from codegen_mcp.engine.checkpoints.publisher import RETRY_S, Publisher
from codegen_mcp.engine.checkpoints.recent import RecentManifests
from codegen_mcp.engine.checkpoints.restored_session import config_of, lost_since
from codegen_mcp.engine.checkpoints.restorer import Restorer
from codegen_mcp.engine.checkpoints.retention import Retention
from codegen_mcp.engine.checkpoints.session_locks import SessionLocks
from codegen_mcp.engine.checkpoints.sound_chains import SoundChains
from codegen_mcp.engine.checkpoints.spool import Spool
from codegen_mcp.engine.checkpoints.taker import LIVE_STATE, Order, Taken, take
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_installer import RestorePlan
from codegen_mcp.engine.session_pool import SessionPool
from codegen_mcp.sandbox.volumes.threads import to_end
from codegen_mcp.stores.base import ObjectStore

log = structlog.get_logger()

TAKEN_AT_ONCE = 3
"""Each keeps one of the worker's threads busy, for a minute where code makes it long."""
EPOCH = 1
"""Until a directory of sessions issues others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Settings of checkpoints."""

    keep: int = 10
    """Visible checkpoints of one session."""
    max_chain: int = 8
    """Archives that a restore may have to read; the next checkpoint is a full one."""
    remote: bool = False
    """The store is beyond a network: drafts outlive its absence, archives are read once."""
    retry_s: Sequence[float] = RETRY_S
    """Between attempts to store what waits for the store; then the last one again and again."""
    exclusive: bool = True
    """No other worker writes to the store: what is half there at the start is a dead one's."""


@dataclass(slots=True, kw_only=True)
class _Found:
    """What there is of a session when a save begins."""

    drafts: Sequence[int]
    shelf: Shelf = field(default_factory=Shelf)
    parent: CheckpointInfo | None = None
    base: Sequence[Entry] = ()
    away: StoreUnavailable | None = None
    """Why the store could not be asked."""


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
        self._last: dict[str, str] = {}
        self._issued: dict[str, int] = {}
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
        async with self._locks.hold(session_id):
            session = self._sessions.session(session_id)  # a restore may have put another there
            with session.checkpointing(), while_open(session), disk_errors():
                found = await self._look(session_id, incremental)
                order = await self._order(session, found, name, trigger)
                async with self._taking:
                    taken = await take(session, order, self._spool)
                await self._publisher.publish(
                    taken.draft, taken.info, taken.manifest, away=found.away
                )
            found.shelf.objects[order.checkpoint_id] = {INFO}
            await self._remember(session, taken, found.shelf)
        log.info(
            "checkpoint.saved",
            checkpoint=str(taken.info.checkpoint_id),
            parent=taken.info.parent,
            bytes=taken.info.size_bytes,
            freeze_ms=taken.info.freeze_ms,
            trigger=trigger,
        )
        return taken.info

    async def restore(self, checkpoint_id: str, *, create_new_session: bool) -> Restored:
        """Restore (``base.Checkpoints.restore``)."""
        asked = parse_checkpoint_id(checkpoint_id)
        session_id = new_session_id() if create_new_session else asked.session_id
        async with self._locks.hold(asked.session_id):
            return await self._restore(await self._catalog.info(asked), session_id)

    async def revive(self, session_id: str) -> Restored | None:
        """Restore a session that is gone (``base.Checkpoints.revive``), once for all who ask."""
        async with self._locks.hold(session_id):
            living = [one for one in self._sessions.living if one.session_id == session_id]
            if living:
                return await self._restored_before(living[0])
            found = await self._newest(session_id)
            if found is None or not found.auto_restore:
                return None
            return await self._restore(found, session_id)

    async def fork(self, session_id: str, count: int) -> Sequence[str]:
        """Copy a session (``base.Checkpoints.fork``)."""
        return [view.session_id for view in await self._sessions.fork(session_id, count)]

    async def list(self, session_id: str = "") -> Sequence[CheckpointInfo]:
        """Newest first; damaged metadata is left out, and said in the log."""
        return await self._library.list(session_id)

    async def get(self, checkpoint_id: str) -> CheckpointInfo:
        """Look at one."""
        return await self._catalog.info(parse_checkpoint_id(checkpoint_id))

    async def delete(self, checkpoint_id: str) -> None:
        """Delete one; what later ones need of it stays until they go."""
        asked = parse_checkpoint_id(checkpoint_id)
        async with self._locks.hold(asked.session_id):
            with suppress(Corrupt, WrongState):  # it may go all the same
                await self._catalog.info(asked)
            await self._catalog.hide(asked)
            self._note_issued(asked.session_id, asked.number)
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

    async def _restore(self, info: CheckpointInfo, session_id: str) -> Restored:
        """Restore; the lock of the checkpoint's session is held."""
        asked = info.checkpoint_id
        with disk_errors():
            verified = await self._restorer.verify(info)
            try:
                packed = verified.journal
                journal = await to_end(lambda: unpack(packed)) if packed else b""
                lost = lost_since(info) if session_id == asked.session_id else ""
                plan = RestorePlan(
                    session_id=session_id,
                    config=config_of(info),
                    fill=lambda slot: self._restorer.fill(slot, verified),
                    restored_from=str(asked),
                    lost=lost,
                    journal=journal,
                )
                await self._sessions.restore(plan)
            finally:
                verified.close()
        return Restored(session_id=session_id, info=info, lost=lost)

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

    async def _look(self, session_id: str, incremental: bool) -> _Found:
        """See what there is of a session. What a dead attempt left of it is cleared away.

        A store that does not answer need not stop a save: it becomes a full one, and waits.
        """
        # Before the store: a draft that is stored in between shows there.
        found = _Found(drafts=await to_end(lambda: self._spool.numbers(session_id)))
        try:
            found.shelf = await self._catalog.shelf(session_id)
            await self._retention.clean(session_id, found.shelf)
            if incremental:
                found.parent, found.base = await self._parent(found.shelf)
        except StoreUnavailable as error:
            if not self._config.remote:
                raise
            found.away = error
        return found

    async def _order(self, session: Session, found: _Found, name: str, trigger: str) -> Order:
        """Choose a number that was never used, as far as store and worker know."""
        session_id = session.session_id
        issued = [found.shelf.newest, self._issued.get(session_id, 0), *found.drafts]
        if found.away is not None:
            live = await to_end(lambda: LiveState.load(session.directory / LIVE_STATE))
            if live is not None and live.checkpoint.startswith(session_id):
                issued.append(parse_checkpoint_id(live.checkpoint).number)
        checkpoint_id = CheckpointId(session_id, EPOCH, max(issued) + 1)
        self._note_issued(session_id, checkpoint_id.number)
        return Order(
            checkpoint_id=checkpoint_id,
            name=name,
            parent=found.parent,
            base=found.base,
            trigger=trigger,
            storage_url=self._store.url(checkpoint_id.key + ARCHIVE),
            stored_here=self._config.exclusive and not self._config.remote,
        )

    async def _parent(self, shelf: Shelf) -> tuple[CheckpointInfo | None, Sequence[Entry]]:
        """The newest checkpoint, when it is sound and its chain is not too long yet."""
        for checkpoint_id in reversed(shelf.visible):
            try:
                info = await self._catalog.info(checkpoint_id, listed=True)
                if len(info.chain) >= self._config.max_chain:
                    return None, ()
                manifest = self._manifests.get(str(checkpoint_id))
                if manifest is None:
                    manifest, _ = await self._catalog.manifest(info)
                await self._chains.check(info)
                return info, manifest.entries
            except (Corrupt, NotFound, WrongState) as error:
                log.warning("checkpoint.no_parent", error=error.message)
                return None, ()
        return None, ()

    async def _remember(self, session: Session, taken: Taken, shelf: Shelf) -> None:
        self._manifests.put(taken.manifest)
        self._last[session.session_id] = str(taken.info.checkpoint_id)
        with suppress(OSError):  # only a hint
            await to_end(lambda: taken.live.save(session.directory / LIVE_STATE))
        try:
            await self._chains.note(taken.info)
            if await self._retention.retire(shelf):
                self._tasks.spawn(self._sweep(session.session_id), "checkpoint-sweep")
        except WorkerError as error:  # this one is saved all the same
            log.warning("checkpoint.not_retired", error=error.message)

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

    async def _sweep(self, session_id: str) -> None:
        """Delete what is hidden and not needed; nobody waits for that."""
        try:
            async with self._locks.hold(session_id):
                await self._retention.sweep(session_id)
        except WorkerError as error:
            log.warning("checkpoint.not_swept", error=error.message)

    def _note_issued(self, session_id: str, number: int) -> None:
        self._issued[session_id] = max(number, self._issued.get(session_id, 0))

    async def _newest(self, session_id: str) -> CheckpointInfo | None:
        visible = (await self._catalog.shelf(session_id)).visible
        return await self._catalog.info(visible[-1]) if visible else None

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
