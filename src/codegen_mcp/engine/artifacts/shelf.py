"""Artifacts as objects of a store: bytes first, metadata last; only what has metadata exists."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from codegen_mcp.core.errors import AlreadyExists, Corrupt, NotFound, WorkerError, WrongState
from codegen_mcp.engine.artifacts.base import ArtifactInfo
from codegen_mcp.engine.artifacts.facts import (
    PREFIX,
    data_key,
    parse_key,
    record_key,
    upload_key,
)
from codegen_mcp.engine.artifacts.record import read_info, write_info
from codegen_mcp.stores.base import ObjectInfo, ObjectStore

log = structlog.get_logger()

MAX_RECORD_BYTES = 512 * 1024
"""Labels of 16 KiB may be six times as long in JSON."""
READS_AT_ONCE = 16
"""Metadata objects; a store that is far away answers each in tens of milliseconds."""


@dataclass(slots=True)
class Shelves:
    """What a listing of the store found."""

    records: dict[str, str] = field(default_factory=dict)
    """Artifact to session."""
    bare: list[ObjectInfo] = field(default_factory=list)
    """Bytes without metadata, and uploads."""


class Shelf:
    """The only user of the store's ``artifacts/``."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    async def look(self) -> Shelves:
        """List everything."""
        found, data = Shelves(), dict[str, ObjectInfo]()
        async with contextlib.aclosing(self.store.list(PREFIX)) as objects:  # type: ignore[type-var]
            async for one in objects:
                if (parts := parse_key(one.key)) is None:
                    continue
                session_id, artifact_id, kind = parts
                if kind == "json":
                    found.records[artifact_id] = session_id
                elif kind == "data":
                    data[artifact_id] = one
                else:
                    found.bare.append(one)
        found.bare += [one for artifact_id, one in data.items() if artifact_id not in found.records]
        return found

    async def infos(self, records: dict[str, str]) -> list[ArtifactInfo]:
        """Read many; those that are gone or damaged are left out, and the latter logged."""
        gate = asyncio.Semaphore(READS_AT_ONCE)

        async def one(artifact_id: str, session_id: str) -> ArtifactInfo | None:
            async with gate:
                try:
                    return await self.info(session_id, artifact_id)
                except NotFound:
                    return None
                except (Corrupt, WrongState) as error:
                    log.warning("artifact.unreadable", artifact_id=artifact_id, reason=error.reason)
                    return None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*record)) for record in records.items()]
        return [info for task in tasks if (info := task.result()) is not None]

    async def info(self, session_id: str, artifact_id: str) -> ArtifactInfo:
        """Read one. NotFound, Corrupt."""
        key = record_key(session_id, artifact_id)
        pieces = self.store.get(key, length=MAX_RECORD_BYTES + 1)
        data = b"".join([piece async for piece in pieces])
        if len(data) > MAX_RECORD_BYTES:
            raise Corrupt(f"the metadata of artifact {artifact_id!r} is too long; delete it")
        return read_info(
            data,
            session_id=session_id,
            artifact_id=artifact_id,
            storage_url=self.store.url(data_key(session_id, artifact_id)),
        )

    async def put_data(self, session_id: str, artifact_id: str, path: Path, sha256: str) -> None:
        """Store bytes; those of an attempt that was cut short are kept if they are the same.

        Raises:
            Corrupt: The file has another sha256.
        """
        key = data_key(session_id, artifact_id)
        try:
            await self.store.put_file(key, path, sha256=sha256)
        except AlreadyExists:
            if (await self.measure(session_id, artifact_id))[1] != sha256:
                await self.store.delete(key)
                await self.store.put_file(key, path, sha256=sha256)

    async def measure(self, session_id: str, artifact_id: str) -> tuple[int, str]:
        """Read all bytes; (length, sha256). NotFound when there are none."""
        digest, size = hashlib.sha256(), 0
        async for piece in self.store.get(data_key(session_id, artifact_id)):
            size += len(piece)
            if len(piece) > 64 * 1024:
                await asyncio.to_thread(digest.update, piece)
            else:
                digest.update(piece)
        return size, digest.hexdigest()

    def uploaded(self, session_id: str, artifact_id: str) -> AsyncIterator[bytes]:
        """Read what came by a link of the store's own. NotFound at the first piece."""
        return self.store.get(upload_key(session_id, artifact_id))

    async def drop_upload(self, session_id: str, artifact_id: str) -> None:
        """Delete it; an error is left to a later look."""
        with contextlib.suppress(WorkerError):
            await self.store.delete(upload_key(session_id, artifact_id))

    async def put_info(self, info: ArtifactInfo) -> ArtifactInfo:
        """Make it exist; returns what is stored, which is older after an attempt cut short."""
        try:
            await self.store.put_bytes(
                record_key(info.session_id, info.artifact_id), write_info(info)
            )
        except AlreadyExists:
            return await self.info(info.session_id, info.artifact_id)
        return info

    async def drop(self, info: ArtifactInfo) -> bool:
        """Delete metadata, then bytes; whether there was one."""
        existed = await self.store.delete(record_key(info.session_id, info.artifact_id))
        await self.store.delete(data_key(info.session_id, info.artifact_id))
        return existed

    async def drop_data(self, session_id: str, artifact_id: str) -> None:
        """Delete bytes that have no metadata; an error is left to the next sweep."""
        with contextlib.suppress(WorkerError):
            await self.store.delete(data_key(session_id, artifact_id))

    async def read(
        self, info: ArtifactInfo, offset: int, length: int | None
    ) -> AsyncIterator[bytes]:
        """Bytes of a range. Of the whole, the last piece is given when the sha256 was right.

        Raises:
            Corrupt: Bytes are missing, or are others than were recorded.
        """
        offset = min(offset, info.size_bytes)
        wanted = info.size_bytes - offset
        wanted = wanted if length is None else min(wanted, length)
        whole = wanted == info.size_bytes
        digest, got, held = hashlib.sha256(), 0, b""
        key = data_key(info.session_id, info.artifact_id)
        try:
            async with contextlib.aclosing(  # type: ignore[type-var]
                self.store.get(key, offset=offset, length=wanted)
            ) as pieces:
                async for piece in pieces:
                    got += len(piece)
                    if held:
                        yield held
                    held = piece
                    if whole:
                        digest.update(piece)
        except NotFound:
            got = -1
        if got != wanted or (whole and digest.hexdigest() != info.sha256):
            raise Corrupt(
                f"the stored bytes of artifact {info.artifact_id!r} are not those that were "
                "recorded; delete it and make it again"
            )
        if held:
            yield held
