"""Removes what is over: artifacts by age, uploads by their links, bytes that nobody recorded."""

from __future__ import annotations

import asyncio
from types import TracebackType

import structlog

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.engine.artifacts.config import ArtifactConfig
from codegen_mcp.engine.artifacts.facts import parse_key
from codegen_mcp.engine.artifacts.index import ArtifactIndex
from codegen_mcp.engine.artifacts.shelf import Shelf
from codegen_mcp.engine.artifacts.spool import Spool
from codegen_mcp.engine.artifacts.uploads import RECORD_GRACE_MS, Upload
from codegen_mcp.engine.owned_tasks import OwnedTasks

log = structlog.get_logger()

LOOK_S = 3600.0
"""How often the whole store is listed: for bytes without metadata, which only a crash leaves."""


class Sweeper:
    """Owns the one background task of artifacts; an async context manager."""

    def __init__(
        self,
        shelf: Shelf,
        spool: Spool,
        index: ArtifactIndex,
        uploads: dict[str, Upload],
        *,
        config: ArtifactConfig,
        clock: Clock,
    ) -> None:
        """Share the keeper's parts; ``index`` is filled at the first look."""
        self._shelf = shelf
        self._spool = spool
        self._index = index
        self._uploads = uploads
        self._config = config
        self._clock = clock
        self._tasks = OwnedTasks()
        self._looking = asyncio.Lock()
        self._sweeping = asyncio.Lock()
        self._looked_at: float | None = None

    async def __aenter__(self) -> Sweeper:
        """Begin; the first look is not waited for."""
        self._tasks.spawn(self._for_ever(), "artifact-sweeper")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._tasks.aclose()

    async def ready(self) -> None:
        """Return when the index is filled. StoreUnavailable when it cannot be."""
        if self._looked_at is None:
            async with self._looking:
                if self._looked_at is None:
                    await self._look()

    async def sweep(self) -> None:
        """Remove what is over now.

        Raises:
            StoreUnavailable: What is left is removed by a later sweep.
        """
        async with self._sweeping:
            if self._looked_at is None or self._clock.monotonic() - self._looked_at >= LOOK_S:
                async with self._looking:
                    await self._look()
            now_ms = self._clock.unix_ms()
            for upload in [one for one in self._uploads.values() if one.over(now_ms)]:
                if not upload.lock.locked():
                    async with upload.lock:
                        await self._drop_upload(upload)
            for info in self._index.created_before(now_ms - round(self._config.ttl_s * 1000)):
                await self._shelf.drop(info)
                self._index.remove(info.artifact_id)
                log.info(
                    "artifact.expired", artifact_id=info.artifact_id, session_id=info.session_id
                )

    async def _for_ever(self) -> None:
        while True:
            try:
                await self.sweep()
            except WorkerError as error:
                log.warning("artifact.sweep_failed", reason=error.reason)
            except Exception:
                log.exception("artifact.sweep_failed")
            await asyncio.sleep(self._config.sweep_s)

    async def _look(self) -> None:
        found = await self._shelf.look()
        known = {
            artifact_id: session_id
            for artifact_id, session_id in found.records.items()
            if artifact_id not in self._index
        }
        for info in await self._shelf.infos(known):
            self._index.add(info)
        for artifact_id in [one for one in self._uploads if one in self._index]:
            # Recorded by a worker that ended before it could say so.
            await self._drop_upload(self._uploads[artifact_id])
        oldest_ms = self._clock.unix_ms() - self._config.link_s * 1000 - 2 * RECORD_GRACE_MS
        for one in found.bare:
            parts = parse_key(one.key)
            assert parts is not None
            session_id, artifact_id, kind = parts
            # Another worker of this store may be about to record it.
            old = one.modified_ms < oldest_ms
            if old and artifact_id not in self._uploads:
                if kind == "upload":
                    await self._shelf.drop_upload(session_id, artifact_id)
                elif artifact_id not in self._index:
                    await self._shelf.drop_data(session_id, artifact_id)
        self._looked_at = self._clock.monotonic()

    async def _drop_upload(self, upload: Upload) -> None:
        artifact_id = upload.announced.artifact_id
        if self._uploads.pop(artifact_id, None) is not None:
            if upload.announced.direct:
                await self._shelf.drop_upload(upload.announced.session_id, artifact_id)
            await self._spool.drop(artifact_id)
