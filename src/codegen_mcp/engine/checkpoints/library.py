"""What can be done with stored checkpoints alone, without sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo, parse_checkpoint_id
from codegen_mcp.core.errors import Corrupt, NotFound, StoreUnavailable, WorkerError, WrongState
from codegen_mcp.engine.checkpoints.base import Verified
from codegen_mcp.engine.checkpoints.catalog import Catalog
from codegen_mcp.engine.checkpoints.disk_errors import disk_errors
from codegen_mcp.engine.checkpoints.journal import unpack
from codegen_mcp.engine.checkpoints.portable import export_checkpoint, import_checkpoint
from codegen_mcp.engine.checkpoints.read_back import verify_stored
from codegen_mcp.engine.checkpoints.session_locks import SessionLocks
from codegen_mcp.engine.checkpoints.spool import Spool

log = structlog.get_logger()


class Library:
    """Lists, verifies, exports and imports."""

    def __init__(self, catalog: Catalog, spool: Spool, locks: SessionLocks | None = None) -> None:
        """``locks``: of the sessions, where this process also saves them."""
        self._catalog = catalog
        self._spool = spool
        self._locks = locks or SessionLocks()

    async def list(self, session_id: str = "") -> Sequence[CheckpointInfo]:
        """Newest first; damaged metadata is left out, and said in the log."""
        found: list[CheckpointInfo] = []
        for shelf in (await self._catalog.shelves(session_id)).values():
            for checkpoint_id in shelf.visible:
                try:
                    found.append(await self._catalog.info(checkpoint_id, listed=True))
                except NotFound:
                    continue  # deleted meanwhile
                except (Corrupt, WrongState) as error:
                    log.error("checkpoint.damaged", error=error.message)
        found.sort(key=lambda one: (one.created_at_ms, str(one.checkpoint_id)), reverse=True)
        return found

    async def verify(self, session_id: str = "") -> AsyncIterator[Verified]:
        """Read every byte of every checkpoint again, hidden ones that are needed too."""
        for shelf in (await self._catalog.shelves(session_id)).values():
            for checkpoint_id in shelf.complete:
                found = await self._verify(checkpoint_id)
                if found.ok or await self._counts(checkpoint_id):
                    yield found

    async def _counts(self, checkpoint_id: CheckpointId) -> bool:
        """Whether it can be restored, or one that can needs it; else it is on its way out."""
        shelf = await self._catalog.shelf(checkpoint_id.session_id)
        if checkpoint_id in shelf.visible:
            return True
        for other in shelf.visible:
            if other.epoch == checkpoint_id.epoch:
                try:
                    info = await self._catalog.info(other)
                except WorkerError:
                    return True  # nobody knows what it needs
                if checkpoint_id.number in info.chain:
                    return True
        return False

    async def export(self, checkpoint_id: str, target: Path) -> int:
        """Write one self-contained file; its bytes."""
        info = await self._catalog.info(parse_checkpoint_id(checkpoint_id))
        return await export_checkpoint(self._catalog, info, target)

    async def import_(self, source: Path) -> CheckpointInfo:
        """Take in an exported file; everything is verified first."""
        with disk_errors():
            return await import_checkpoint(self._catalog, self._spool, self._locks, source)

    async def _verify(self, checkpoint_id: CheckpointId) -> Verified:
        read = 0
        try:
            info = await self._catalog.info(checkpoint_id, hidden=True)
            manifest, _ = await self._catalog.manifest(info)
            journal = await self._catalog.journal(info)
            if journal:
                unpack(journal)
            read = await verify_stored(self._catalog, info, manifest)
            for number in info.chain:
                await self._catalog.info(replace(checkpoint_id, number=number), hidden=True)
        except StoreUnavailable:
            raise
        except WorkerError as error:
            return Verified(
                checkpoint_id=checkpoint_id, ok=False, problem=error.message, bytes_read=read
            )
        return Verified(checkpoint_id=checkpoint_id, ok=True, bytes_read=read)
