"""Brings drafts into the store, reads them back, and keeps at it while the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo
from codegen_mcp.core.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    NotFound,
    StoreUnavailable,
    WorkerError,
)
from codegen_mcp.engine.checkpoints.catalog import (
    ARCHIVE,
    INFO,
    JOURNAL,
    MANIFEST,
    Catalog,
    missing,
)
from codegen_mcp.engine.checkpoints.manifest import Manifest, decode_manifest
from codegen_mcp.engine.checkpoints.metadata import decode_info
from codegen_mcp.engine.checkpoints.read_back import verify_stored
from codegen_mcp.engine.checkpoints.session_locks import SessionLocks
from codegen_mcp.engine.checkpoints.spool import Draft
from codegen_mcp.engine.checkpoints.upload import Upload
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.uninterrupted import all_of, settled
from codegen_mcp.sandbox.volumes.threads import to_end

log = structlog.get_logger()

RETRY_S = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0)
UPLOADS = 4
"""Asked for at once; a store may hold some 32 MiB of each in memory."""
LATE_UPLOADS = 2
"""Of drafts that waited, beside those."""
ATTEMPTS = 3
"""How often a draft that waits is stored anew when what comes back is damaged."""

Settle = Callable[[CheckpointInfo], Awaitable[None]]


@dataclass(slots=True)
class _Waiting:
    draft: Draft
    info: CheckpointInfo
    task: asyncio.Task[None] | None = None


class Publisher:
    """Owns what waits for the store."""

    def __init__(
        self,
        catalog: Catalog,
        tasks: OwnedTasks,
        locks: SessionLocks,
        *,
        keeps: bool,
        most_waiting: int = 10,
        retry_s: Sequence[float] = RETRY_S,
        settle: Settle | None = None,
    ) -> None:
        """Wire it up.

        Args:
            catalog: Of the store.
            tasks: Owns the retries.
            locks: Of sessions; whoever calls ``publish`` holds the session's.
            keeps: Whether drafts outlive a store that does not answer (one beyond a network).
            most_waiting: Drafts of one session that are kept; the oldest go first.
            retry_s: Seconds before the second attempt, the third, and so on; then the last one.
            settle: Awaited, with the session's lock held, when a draft was stored late.
        """
        self._catalog = catalog
        self._tasks = tasks
        self._locks = locks
        self._keeps = keeps
        self._most_waiting = most_waiting
        self._retry_s = tuple(retry_s)
        self._settle = settle
        self._waiting: dict[CheckpointId, _Waiting] = {}
        self._uploads = asyncio.Semaphore(UPLOADS)
        self._late = asyncio.Semaphore(LATE_UPLOADS)

    @property
    def waiting(self) -> int:
        """Drafts that are not in the store yet."""
        return len(self._waiting)

    def needed(self, session_id: str) -> set[CheckpointId]:
        """Drafts of a session that wait, and the checkpoints that their chains need."""
        return {
            replace(one.info.checkpoint_id, number=number)
            for one in self._of(session_id)
            for number in one.info.chain
        }

    async def stored(self) -> None:
        """Wait until every draft that waits now is in the store, or was given up."""
        tasks = [one.task for one in self._waiting.values() if one.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def begin(self, draft: Draft, checkpoint_id: CheckpointId, sha256: str) -> Upload | None:
        """Begin to store an archive whose draft is not whole yet, where that may be done now.

        Args:
            draft: Its archive is written.
            checkpoint_id: Its id.
            sha256: Of the archive.

        Returns:
            For ``publish``, or to be undone; None where a draft has to be whole before.
        """
        if self._keeps or self._uploads.locked():
            return None
        put = self._put(checkpoint_id, ARCHIVE, draft.archive, sha256)
        return Upload(put, lambda: self._discard(checkpoint_id))

    async def publish(
        self,
        draft: Draft,
        info: CheckpointInfo,
        manifest: Manifest,
        *,
        away: StoreUnavailable | None = None,
        upload: Upload | None = None,
    ) -> None:
        """Store a draft and read it back; it exists, durable and verified, when this returns.

        Where drafts are kept, a caller that is cancelled leaves a whole one, which is stored later.

        Args:
            draft: Its files are written; the publisher's from now on, until this returns: then
                the caller removes it.
            info: Its facts.
            manifest: Its manifest.
            away: How the store failed a moment ago: it is not asked now.
            upload: Of its archive, if that was begun.

        Raises:
            StoreUnavailable: The store does not answer. Where drafts are kept, it is stored later.
            Corrupt: What is read back is not what was written; nothing of it is left.
            Conflict: Another worker wrote under the same id.
        """
        try:
            if self._keeps:
                await to_end(draft.make_ready)
            if away is not None:
                raise away
            async with self._uploads:
                await self._store(draft, info, manifest, upload)
        except StoreUnavailable as error:
            if not self._keeps:
                await self._undo(draft, info, upload)
                raise
            self._wait(info, draft, tried=True)
            await self._drop_oldest(info.checkpoint_id.session_id)
            raise not_stored(info.checkpoint_id, error, self._retry_s[-1]) from error
        except asyncio.CancelledError:
            if self._keeps and await to_end(lambda: draft.ready):
                self._wait(info, draft)
            else:
                await self._undo(draft, info, upload)
            raise
        except BaseException:
            await self._undo(draft, info, upload)
            raise

    async def resume(self, checkpoint_id: CheckpointId, draft: Draft) -> None:
        """Store a whole draft of a worker before this one as soon as the store answers."""
        try:
            info = await to_end(lambda: decode_info(draft.info.read_bytes(), checkpoint_id))
        except (WorkerError, OSError) as error:
            _log_given_up(checkpoint_id, error)
            return
        self._wait(info, draft)

    def _of(self, session_id: str) -> list[_Waiting]:
        found = [
            one for one in self._waiting.values() if one.info.checkpoint_id.session_id == session_id
        ]
        return sorted(found, key=lambda one: one.info.checkpoint_id.number)

    def _wait(self, info: CheckpointInfo, draft: Draft, *, tried: bool = False) -> None:
        if info.checkpoint_id not in self._waiting:
            one = self._waiting[info.checkpoint_id] = _Waiting(draft, info)
            one.task = self._tasks.spawn(self._insist(one, tried=tried), "checkpoint-upload")

    async def _drop_oldest(self, session_id: str) -> None:
        """A store that stays away must not fill the disk: what retention would delete, goes."""
        for one in self._of(session_id)[: -self._most_waiting]:
            if one.task is not None:
                one.task.cancel()
                await asyncio.wait([one.task])
            if self._waiting.pop(one.info.checkpoint_id, None) is not None:
                await to_end(one.draft.remove)
                log.warning("checkpoint.dropped", checkpoint=str(one.info.checkpoint_id))

    async def _insist(self, one: _Waiting, *, tried: bool) -> None:
        """Store a draft that waits. One that cannot be stays on disk, and what it needs stays."""
        checkpoint_id = one.info.checkpoint_id
        attempt = damaged = 0
        while True:
            if tried:
                await asyncio.sleep(self._retry_s[min(attempt, len(self._retry_s) - 1)])
                attempt += 1
            tried = True
            try:
                async with self._late:
                    await self._store_late(one)
                break
            except StoreUnavailable:
                pass
            except (WorkerError, OSError) as error:
                damaged += 1
                if not isinstance(error, Conflict):  # what another worker wrote is not ours
                    await self._discard(checkpoint_id)
                if damaged == ATTEMPTS or isinstance(error, OSError):
                    _log_given_up(checkpoint_id, error)
                    return
            except Exception:
                log.exception("checkpoint.not_stored", checkpoint=str(checkpoint_id))
                return
        log.info("checkpoint.stored_late", checkpoint=str(checkpoint_id))
        # Whoever holds the lock may have listed the store before this one was there.
        async with self._locks.hold(checkpoint_id.session_id):
            self._waiting.pop(checkpoint_id, None)
            if self._settle is not None:
                await self._settle(one.info)
        await to_end(one.draft.remove)

    async def _store_late(self, one: _Waiting) -> None:
        info = one.info
        for number in info.chain[:-1]:
            link = replace(info.checkpoint_id, number=number)
            if not (await self._catalog.has(link, INFO) and await self._catalog.has(link, ARCHIVE)):
                raise missing(link, "archive")
        manifest = await to_end(lambda: decode_manifest(one.draft.manifest.read_bytes()))
        await self._store(one.draft, info, manifest)

    async def _store(
        self,
        draft: Draft,
        info: CheckpointInfo,
        manifest: Manifest,
        upload: Upload | None = None,
    ) -> None:
        """Everything is read back before the metadata makes it a checkpoint."""
        checkpoint_id, catalog = info.checkpoint_id, self._catalog
        try:
            puts = [
                upload.done()
                if upload is not None
                else self._put(checkpoint_id, ARCHIVE, draft.archive, info.sha256),
                self._put(checkpoint_id, MANIFEST, draft.manifest, info.manifest_sha256),
            ]
            if info.journal_sha256:
                puts.append(self._put(checkpoint_id, JOURNAL, draft.journal, info.journal_sha256))
            await all_of(puts)
            await all_of(
                [
                    verify_stored(catalog, info, manifest),
                    catalog.check_manifest(info),
                    catalog.journal(info),
                ]
            )
            await self._put_info(draft, info)
        except NotFound as error:
            raise StoreUnavailable(
                f"the store lost an object of checkpoint {str(info.checkpoint_id)!r} while it was "
                f"stored ({error.message}); try again"
            ) from error

    async def _put_info(self, draft: Draft, info: CheckpointInfo) -> None:
        checkpoint_id, ours = info.checkpoint_id, True
        data = await to_end(draft.info.read_bytes)
        try:
            await self._catalog.store.put_bytes(checkpoint_id.key + INFO, data)
        except AlreadyExists:
            ours = False
        if await self._catalog.info_data(checkpoint_id) == data:
            self._catalog.remember(info)
        elif ours:
            await self._catalog.remove(checkpoint_id, (INFO,))
            raise Corrupt(
                f"the metadata of checkpoint {str(checkpoint_id)!r} came back damaged; it was "
                "removed, take another one",
                reason="CHECKPOINT_DAMAGED",
            )
        else:
            raise taken(checkpoint_id)

    async def _put(self, checkpoint_id: CheckpointId, suffix: str, path: Path, sha256: str) -> None:
        """Store a file; one that is there already must be the same (an attempt before this)."""
        key = checkpoint_id.key + suffix
        try:
            await self._catalog.store.put_file(key, path, sha256=sha256, given=True)
        except AlreadyExists:
            size = (await self._catalog.store.stat(key)).size
            if size != await to_end(lambda: path.stat().st_size):
                raise taken(checkpoint_id) from None

    async def _undo(self, draft: Draft, info: CheckpointInfo, upload: Upload | None) -> None:
        """Leave nothing of a draft; to its end, also when the caller is cancelled meanwhile."""

        async def undo() -> None:
            if upload is not None:
                await upload.stop()
            await self._discard(info.checkpoint_id)
            await to_end(draft.remove)

        job = asyncio.ensure_future(undo())
        if (cancelled := await settled(job)) is not None:
            raise cancelled
        job.result()

    async def _discard(self, checkpoint_id: CheckpointId) -> None:
        """Delete what was stored of a draft that is no checkpoint.

        What cannot be deleted now is cleaned away before the session's next one.
        """
        try:
            if not await self._catalog.has(checkpoint_id, INFO):
                await self._catalog.remove(checkpoint_id, (ARCHIVE, MANIFEST, JOURNAL))
        except StoreUnavailable as error:
            log.warning("checkpoint.not_discarded", error=error.message)


def not_stored(
    checkpoint_id: CheckpointId, error: StoreUnavailable, retry_after_s: float
) -> StoreUnavailable:
    """Return the answer where a checkpoint is whole here and waits for the store."""
    return StoreUnavailable(
        f"checkpoint {str(checkpoint_id)!r} is complete on this worker, but the store does not "
        f"answer: {error.message}. It is stored as soon as it does; look for it with "
        "ListCheckpoints",
        reason="CHECKPOINT_NOT_STORED",
        retry_after_s=retry_after_s,
    )


def taken(checkpoint_id: CheckpointId) -> Conflict:
    """Return the answer where another worker wrote under the same id."""
    return Conflict(
        f"checkpoint {str(checkpoint_id)!r} was written by another worker at the same time; take "
        "another one",
        reason="CHECKPOINT_TAKEN",
    )


def _log_given_up(checkpoint_id: CheckpointId, error: Exception) -> None:
    """Say so; the draft stays, and the next start tries again."""
    log.error("checkpoint.not_stored", checkpoint=str(checkpoint_id), error=str(error))
