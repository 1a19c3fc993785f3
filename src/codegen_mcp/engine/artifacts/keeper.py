"""The artifacts of a worker. Implements ``base.Artifacts``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    InvalidRequest,
    LimitExceeded,
    NotFound,
)
from codegen_mcp.engine.artifacts import facts, refusals
from codegen_mcp.engine.artifacts.base import ArtifactInfo, Links, UploadTicket
from codegen_mcp.engine.artifacts.config import ArtifactConfig
from codegen_mcp.engine.artifacts.index import ArtifactIndex
from codegen_mcp.engine.artifacts.quota import Quota
from codegen_mcp.engine.artifacts.record import Announced
from codegen_mcp.engine.artifacts.shelf import Shelf
from codegen_mcp.engine.artifacts.spool import Spool
from codegen_mcp.engine.artifacts.sweeper import Sweeper
from codegen_mcp.engine.artifacts.uploads import Upload
from codegen_mcp.stores.base import ObjectStore


class ArtifactKeeper:
    """An async context manager; leaving it ends its sweeps. The store is its opener's."""

    def __init__(
        self,
        store: ObjectStore,
        directory: Path,
        *,
        find_session: Callable[[str], object],
        room: Callable[[], int],
        config: ArtifactConfig,
        clock: Clock,
    ) -> None:
        """Wire it; nothing happens before it is entered.

        Args:
            store: Open; where recorded artifacts lie.
            directory: Of this worker, for bytes on their way; made if need be.
            find_session: Raises NotFound for a session that does not live.
            room: Bytes that may still be written to the directory's disk.
            config: Bounds and times.
            clock: For expiry.
        """
        self._shelf = Shelf(store)
        self._spool = Spool(directory, room)
        self._find_session = find_session
        self._config = config
        self._clock = clock
        self._index = ArtifactIndex()
        self._uploads: dict[str, Upload] = {}
        self._quota = Quota(config, self._index, self._uploads)
        self._links: Links | None = None
        self.sweeper = Sweeper(
            self._shelf, self._spool, self._index, self._uploads, config=config, clock=clock
        )
        """Sweeps by itself; tests may call ``sweep``."""

    async def __aenter__(self) -> ArtifactKeeper:
        for announced in await self._spool.open():
            self._uploads[announced.artifact_id] = Upload(announced)
        await self.sweeper.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.sweeper.__aexit__(kind, error, trace)

    def serve_links(self, links: Links | None) -> None:
        """Say that this worker's HTTP server serves (None: does no longer)."""
        self._links = links

    async def begin_upload(
        self, *, session_id: str, task_id: str, name: str, content_type: str, size_bytes: int
    ) -> UploadTicket:
        """Announce an upload; on disk before the link is given out."""
        self._find_session(session_id)
        name = facts.check_name(name)
        content_type = facts.check_content_type(content_type)
        task_id = facts.check_task_label(task_id)
        await self.sweeper.ready()
        self._quota.check(session_id, size_bytes)
        self._quota.check_uploads()
        artifact_id = facts.new_artifact_id()
        expires_at_ms = self._clock.unix_ms() + self._config.link_s * 1000
        url = await self._shelf.store.upload_link(
            facts.upload_key(session_id, artifact_id),
            content_type=content_type,
            size_bytes=size_bytes,
            expires_s=self._config.link_s,
        )
        direct = url is not None
        if url is None:
            url = self._own_links().upload_url(
                artifact_id, size_bytes=size_bytes, expires_at_ms=expires_at_ms
            )
        announced = Announced(
            artifact_id=artifact_id,
            session_id=session_id,
            task_id=task_id,
            name=name,
            content_type=content_type,
            size_bytes=size_bytes,
            expires_at_ms=expires_at_ms,
            direct=direct,
        )
        self._uploads[artifact_id] = Upload(announced)
        try:
            await self._spool.announce(announced)
        except BaseException:
            del self._uploads[artifact_id]
            await self._spool.drop(artifact_id)
            raise
        return UploadTicket(artifact_id=artifact_id, upload_url=url, expires_at_ms=expires_at_ms)

    async def receive(self, artifact_id: str, data: AsyncIterator[bytes]) -> str:
        """Take an upload's bytes into the spool."""
        await self.sweeper.ready()
        upload = self._upload(artifact_id)
        if upload.announced.direct or self._clock.unix_ms() >= upload.announced.expires_at_ms:
            raise refusals.no_upload(artifact_id)
        if upload.lock.locked():
            raise Conflict(f"artifact {artifact_id!r} is being sent or recorded at this moment")
        async with upload.lock:
            return await self._spool.write(artifact_id, data, upload.announced.size_bytes)

    async def record(
        self,
        artifact_id: str,
        *,
        task_id: str,
        name: str,
        content_type: str,
        size_bytes: int,
        sha256: str,
        labels: Mapping[str, str],
    ) -> tuple[ArtifactInfo, str]:
        """Check and store what was uploaded; empty texts are as announced."""
        sha256 = facts.check_sha256(sha256)
        labels = facts.check_labels(labels)
        task_id = facts.check_task_label(task_id)
        name = facts.check_name(name) if name else ""
        content_type = facts.check_content_type(content_type) if content_type else ""
        await self.sweeper.ready()

        def asked(known: ArtifactInfo | Announced) -> dict[str, object]:
            return {
                "task_id": task_id or known.task_id,
                "name": name or known.name,
                "content_type": content_type or known.content_type,
                "size_bytes": size_bytes,
                "sha256": sha256,
                "labels": labels,
            }

        upload = self._uploads.get(artifact_id)
        if upload is not None:
            async with upload.lock:
                if artifact_id not in self._index and artifact_id in self._uploads:
                    await self._record(upload, size_bytes, sha256, asked(upload.announced))
        info = self._index.find(artifact_id)
        if info is None:
            raise refusals.no_upload(artifact_id)
        for field, value in asked(info).items():
            if getattr(info, field) != value:
                raise AlreadyExists(
                    f"artifact {artifact_id!r} was recorded before with another {field}; upload a "
                    "new one"
                )
        return info, await self.download_link(info)

    async def put(
        self,
        *,
        session_id: str,
        task_id: str,
        name: str,
        content_type: str,
        labels: Mapping[str, str],
        size_bytes: int,
        data: AsyncIterator[bytes],
    ) -> ArtifactInfo:
        """Store and record a stream of ours."""
        info = ArtifactInfo(
            artifact_id=facts.new_artifact_id(),
            session_id=session_id,
            task_id=facts.check_task_label(task_id),
            name=facts.check_name(name),
            content_type=facts.check_content_type(content_type),
            size_bytes=size_bytes,
            sha256="",
            labels=facts.check_labels(labels),
        )
        await self.sweeper.ready()
        self._quota.check(session_id, size_bytes)
        try:
            sha256 = await self._spool.write(info.artifact_id, data, size_bytes)
            info = dataclasses.replace(info, sha256=sha256)
            return await self._store(info)
        except BaseException:
            await self._shelf.drop_data(session_id, info.artifact_id)
            raise
        finally:
            await self._spool.drop(info.artifact_id)

    async def get(self, artifact_id: str) -> ArtifactInfo:
        """Look one up."""
        facts.check_artifact_id(artifact_id)
        await self.sweeper.ready()
        info = self._index.find(artifact_id)
        if info is None:
            raise facts.no_artifact(artifact_id)
        return info

    async def session_of(self, artifact_id: str) -> str:
        """The session of an artifact, or of an upload that was announced.

        Raises:
            NotFound: There is neither.
        """
        upload = self._uploads.get(artifact_id)
        if upload is not None:
            return upload.announced.session_id
        return (await self.get(artifact_id)).session_id

    async def read(
        self, artifact_id: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Its bytes; a whole read ends in Corrupt when they are not those that were recorded."""
        info = await self.get(artifact_id)
        async with contextlib.aclosing(self._shelf.read(info, offset, length)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    async def list(
        self,
        session_id: str = "",
        *,
        task_id: str = "",
        before: tuple[int, str] | None = None,
        limit: int | None = None,
    ) -> Sequence[ArtifactInfo]:
        """Newest first."""
        await self.sweeper.ready()
        return self._index.newest(session_id, task_id, before, limit)

    async def delete(self, artifact_id: str) -> bool:
        """Delete one; it does not exist any more when this returns or raises."""
        await self.sweeper.ready()
        info = self._index.find(artifact_id)
        if info is None:
            return False
        existed = await self._shelf.drop(info)
        self._index.remove(artifact_id)
        return existed

    async def download_link(self, info: ArtifactInfo) -> str:
        """The store's own link, else one of this worker's HTTP server."""
        url = await self._shelf.store.download_link(
            facts.data_key(info.session_id, info.artifact_id),
            file_name=info.name,
            content_type=info.content_type,
            expires_s=self._config.link_s,
        )
        if url is None and self._links is not None:
            expires_at_ms = self._clock.unix_ms() + self._config.link_s * 1000
            url = self._links.download_url(info.artifact_id, expires_at_ms=expires_at_ms)
        return url or ""

    def _upload(self, artifact_id: str) -> Upload:
        if artifact_id in self._index:
            raise AlreadyExists(
                f"artifact {artifact_id!r} was uploaded and recorded already; ask for a new link"
            )
        upload = self._uploads.get(artifact_id)
        if upload is None:
            raise refusals.no_upload(artifact_id)
        return upload

    def _own_links(self) -> Links:
        if self._links is None:
            raise refusals.no_links()
        return self._links

    async def _record(
        self, upload: Upload, size_bytes: int, sha256: str, asked: Mapping[str, object]
    ) -> None:
        """Make an upload an artifact; its lock is held."""
        announced = upload.announced
        artifact_id, session_id = announced.artifact_id, announced.session_id
        if size_bytes != announced.size_bytes:
            raise Corrupt(
                f"artifact {artifact_id!r} was announced with {announced.size_bytes} bytes and is "
                f"to be recorded with {size_bytes}; nothing was recorded"
            )
        info = ArtifactInfo(artifact_id=artifact_id, session_id=session_id, **asked)  # type: ignore[arg-type]
        if announced.direct:
            await self._fetch(announced)
        size = await self._spool.size(artifact_id)
        if size is None:
            raise refusals.nothing_sent(artifact_id)
        try:
            if size != size_bytes:
                raise refusals.differs(artifact_id)
            await self._store(info)
        except Corrupt:
            await self._spool.drop(artifact_id, announced=False)
            if announced.direct:
                await self._shelf.drop_upload(session_id, artifact_id)
            raise refusals.differs(artifact_id) from None
        del self._uploads[artifact_id]
        await self._spool.drop(artifact_id)
        if announced.direct:
            await self._shelf.drop_upload(session_id, artifact_id)

    async def _fetch(self, announced: Announced) -> None:
        """Take what a client put into the store itself: its link lets it change that later."""
        artifact_id, session_id = announced.artifact_id, announced.session_id
        try:
            async with contextlib.aclosing(  # type: ignore[type-var]
                self._shelf.uploaded(session_id, artifact_id)
            ) as data:
                await self._spool.write(artifact_id, data, announced.size_bytes)
        except NotFound:
            raise refusals.nothing_sent(artifact_id) from None
        except (LimitExceeded, InvalidRequest):
            await self._shelf.drop_upload(session_id, artifact_id)
            raise refusals.differs(artifact_id) from None

    async def _store(self, info: ArtifactInfo) -> ArtifactInfo:
        path = self._spool.path(info.artifact_id)
        await self._shelf.put_data(info.session_id, info.artifact_id, path, info.sha256)
        return await self._exists(info)

    async def _exists(self, info: ArtifactInfo) -> ArtifactInfo:
        info = dataclasses.replace(
            info,
            created_at_ms=self._clock.unix_ms(),
            storage_url=self._shelf.store.url(facts.data_key(info.session_id, info.artifact_id)),
        )
        info = await self._shelf.put_info(info)
        self._index.add(info)
        return info
