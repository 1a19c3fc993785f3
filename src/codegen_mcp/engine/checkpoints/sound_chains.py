"""Whether the checkpoints that a new one would build on can still be restored.

An incremental checkpoint is worth what the archives of its chain are. Each is verified when it is
stored; what becomes of it later is seen here, before another is built on it: an object of another
size or time than when it was last known to be whole is read again, as is everything that this
worker has not seen yet. A store beyond a network keeps checksums of its own: there sizes are all
that is looked at.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo
from codegen_mcp.core.errors import Corrupt, NotFound
from codegen_mcp.engine.checkpoints.catalog import ARCHIVE, Catalog, missing
from codegen_mcp.engine.uninterrupted import all_of
from codegen_mcp.stores.base import ObjectInfo

CACHED = 4096


class SoundChains:
    """Remembers which archives were whole, and how they looked then."""

    def __init__(self, catalog: Catalog, *, remote: bool) -> None:
        self._catalog = catalog
        self._remote = remote
        self._known: dict[CheckpointId, tuple[int, int]] = {}

    async def note(self, info: CheckpointInfo) -> None:
        """Remember an archive that was just stored and read back. NotFound, StoreUnavailable."""
        if not self._remote:
            key = info.checkpoint_id.key + ARCHIVE
            self._remember(info.checkpoint_id, await self._catalog.store.stat(key))

    async def check(self, info: CheckpointInfo) -> None:
        """Look at every archive of a chain.

        Raises:
            NotFound: One is missing, or its metadata. Corrupt: One is damaged.
        """
        await all_of(
            self._check(replace(info.checkpoint_id, number=number)) for number in info.chain
        )

    async def _check(self, checkpoint_id: CheckpointId) -> None:
        info = await self._catalog.info(checkpoint_id, hidden=True, listed=self._remote)
        try:
            found = await self._catalog.store.stat(checkpoint_id.key + ARCHIVE)
            whole = found.size == info.size_bytes
            if whole and not self._remote:
                if self._known.get(checkpoint_id) == (found.size, found.modified_ms):
                    return
                whole = await self._sha256(checkpoint_id) == info.sha256
                if whole:
                    self._remember(checkpoint_id, found)
        except NotFound:
            raise missing(checkpoint_id, "archive") from None
        if not whole:
            raise Corrupt(
                f"the archive of checkpoint {str(checkpoint_id)!r} is damaged; use another "
                "checkpoint of the session",
                reason="CHECKPOINT_DAMAGED",
            )

    async def _sha256(self, checkpoint_id: CheckpointId) -> str:
        digest = hashlib.sha256()
        async for piece in self._catalog.archive(checkpoint_id):
            digest.update(piece)
        return digest.hexdigest()

    def _remember(self, checkpoint_id: CheckpointId, found: ObjectInfo) -> None:
        while len(self._known) >= CACHED:
            self._known.pop(next(iter(self._known)))
        self._known[checkpoint_id] = found.size, found.modified_ms
