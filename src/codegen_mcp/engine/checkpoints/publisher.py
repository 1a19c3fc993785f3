"""Brings drafts into the store, reads them back, and keeps at it while the store is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import structlog

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo
from codegen_mcp.core.errors import AlreadyExists, Conflict, Corrupt, StoreUnavailable, WorkerError
from codegen_mcp.engine.checkpoints.archive_reader import verify_archive
from codegen_mcp.engine.checkpoints.catalog import ARCHIVE, INFO, JOURNAL, MANIFEST, Catalog
from codegen_mcp.engine.checkpoints.manifest import Manifest, decode_manifest
from codegen_mcp.engine.checkpoints.metadata import decode_info
from codegen_mcp.engine.checkpoints.spool import Draft
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.sandbox.volumes.threads import to_end

log = structlog.get_logger()

RETRY_S = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0)
HEAD_ROOM = 64 * 1024 * 1024
"""How much more than its manifest says an archive may inflate to, headers included."""


class Publisher:
    """Owns what waits for the store."""

    def __init__(self, catalog: Catalog, tasks: OwnedTasks, *, keeps: bool) -> None:
        """Wire it up.

        Args:
            catalog: Of the store.
            tasks: Owns the retries.
            keeps: Whether drafts outlive a store that does not answer (one beyond a network).
        """
        self._catalog = catalog
        self._tasks = tasks
        self._keeps = keeps
        self._waiting: dict[CheckpointId, Draft] = {}

    @property
    def waiting(self) -> int:
        """Drafts that are not in the store yet."""
        return len(self._waiting)

    async def publish(self, draft: Draft, info: CheckpointInfo, manifest: Manifest) -> None:
        """Store a draft and read it back; it exists, durable and verified, when this returns.

        Raises:
            StoreUnavailable: The store does not answer. Where drafts are kept, it is stored later.
            Corrupt: What is read back is not what was written.
        """
        if self._keeps:
            await to_end(draft.make_ready)
        try:
            await self._store(draft, info, manifest)
        except StoreUnavailable as error:
            if not self._keeps:
                await to_end(draft.remove)
                raise
            self.resume(info.checkpoint_id, draft)
            raise StoreUnavailable(
                f"checkpoint {str(info.checkpoint_id)!r} is complete on this worker, but the store "
                f"does not answer: {error.message}. It is stored as soon as it does; look for it "
                "with ListCheckpoints",
                reason="CHECKPOINT_NOT_STORED",
                retry_after_s=RETRY_S[-1],
            ) from error
        except BaseException:
            await to_end(draft.remove)
            raise
        await to_end(draft.remove)

    def resume(self, checkpoint_id: CheckpointId, draft: Draft) -> None:
        """Store a whole draft as soon as the store answers."""
        if checkpoint_id not in self._waiting:
            self._waiting[checkpoint_id] = draft
            self._tasks.spawn(self._insist(checkpoint_id, draft), "checkpoint-upload")

    async def _insist(self, checkpoint_id: CheckpointId, draft: Draft) -> None:
        attempt = 0
        try:
            while True:
                try:
                    info, manifest = await to_end(lambda: _read(draft, checkpoint_id))
                    await self._store(draft, info, manifest)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                    attempt += 1
            log.info("checkpoint.stored_late", checkpoint=str(checkpoint_id))
            await to_end(draft.remove)
        except (WorkerError, OSError) as error:
            # It stays where it is, for people: it can be imported once the cause is gone.
            log.error("checkpoint.not_stored", checkpoint=str(checkpoint_id), error=str(error))
        finally:
            del self._waiting[checkpoint_id]

    async def _store(self, draft: Draft, info: CheckpointInfo, manifest: Manifest) -> None:
        key = info.checkpoint_id.key
        await self._put(key + ARCHIVE, draft.archive, info.sha256)
        await verify_stored(self._catalog, info, manifest)
        await self._put(key + MANIFEST, draft.manifest, info.manifest_sha256)
        if info.journal_sha256:
            await self._put(key + JOURNAL, draft.journal, info.journal_sha256)
        data = await to_end(draft.info.read_bytes)
        try:
            await self._catalog.store.put_bytes(key + INFO, data)
        except AlreadyExists:
            if await self._catalog.info(info.checkpoint_id, hidden=True) != info:
                raise taken(info.checkpoint_id) from None
        await self._catalog.check_manifest(info)
        if info.journal_sha256:
            await self._catalog.journal(info)

    async def _put(self, key: str, path: Path, sha256: str) -> None:
        """Store a file; one that is there already must be the same (an attempt before this)."""
        try:
            await self._catalog.store.put_file(key, path, sha256=sha256)
        except AlreadyExists:
            size = (await self._catalog.store.stat(key)).size
            if size != await to_end(lambda: path.stat().st_size):
                raise Conflict(f"object {key!r} is there already and is another one") from None


def _read(draft: Draft, checkpoint_id: CheckpointId) -> tuple[CheckpointInfo, Manifest]:
    info = decode_info(draft.info.read_bytes(), checkpoint_id)
    return info, decode_manifest(draft.manifest.read_bytes())


async def verify_stored(
    catalog: Catalog, info: CheckpointInfo, manifest: Manifest, *, limit: int | None = None
) -> int:
    """Read an archive back from the store and compare it with its manifest; bytes read.

    Raises:
        NotFound: It is not there. Corrupt: It is damaged.
    """
    if limit is None:
        limit = info.inflated_bytes + info.total_bytes + HEAD_ROOM
    loop = asyncio.get_running_loop()
    pieces = catalog.archive(info.checkpoint_id)
    try:
        verified = await to_end(
            lambda: verify_archive(
                blocking(loop, pieces),
                manifest,
                info.checkpoint_id.number,
                sha256=info.sha256,
                max_inflated=limit,
            )
        )
    except Corrupt as error:
        raise Corrupt(
            f"the archive of checkpoint {str(info.checkpoint_id)!r} is damaged: {error.message}",
            reason="CHECKPOINT_DAMAGED",
        ) from error
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            with contextlib.suppress(RuntimeError):
                await close()
    if verified.inflated_bytes != info.inflated_bytes:
        raise Corrupt(
            f"the archive of checkpoint {str(info.checkpoint_id)!r} is not as long as recorded",
            reason="CHECKPOINT_DAMAGED",
        )
    return verified.size


def blocking(loop: asyncio.AbstractEventLoop, pieces: AsyncIterator[bytes]) -> Iterator[bytes]:
    """Read an asynchronous stream from a thread; the loop must go on meanwhile."""

    async def following() -> bytes:
        return await anext(pieces, b"")

    while piece := asyncio.run_coroutine_threadsafe(following(), loop).result():
        yield piece


def taken(checkpoint_id: CheckpointId) -> Conflict:
    """Return the answer where another worker wrote under the same id."""
    return Conflict(
        f"checkpoint {str(checkpoint_id)!r} was written by another worker at the same time; take "
        "another one",
        reason="CHECKPOINT_TAKEN",
    )
