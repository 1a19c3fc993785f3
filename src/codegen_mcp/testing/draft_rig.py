"""Drafts of checkpoints and a store that fails at chosen calls, for tests without sessions."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo
from codegen_mcp.core.errors import StoreUnavailable
from codegen_mcp.engine.checkpoints.manifest import Manifest, encode_manifest
from codegen_mcp.engine.checkpoints.metadata import encode_info
from codegen_mcp.engine.checkpoints.spool import Draft, Spool
from codegen_mcp.engine.task_lines import header_line
from codegen_mcp.stores.base import ObjectInfo
from codegen_mcp.stores.memory import MemoryStore
from codegen_mcp.testing.archive_rig import SESSION, directory, file, pack

T = TypeVar("T")

JOURNAL = gzip.compress(header_line(7), mtime=0)


def make_draft(
    spool: Spool, contents: Mapping[bytes, bytes], number: int = 1
) -> tuple[Draft, CheckpointInfo, Manifest]:
    """Write a full checkpoint's files into the spool."""
    entries = [directory(b"workspace"), *(file(k, v) for k, v in contents.items())]
    packed = pack([*entries, directory(b"venv")], contents)
    checkpoint_id = CheckpointId(SESSION, 1, number)
    manifest = replace(
        packed.manifest,
        checkpoint=str(checkpoint_id),
        entries=tuple(
            replace(e, source=number if e.source else 0) for e in packed.manifest.entries
        ),
    )
    draft = spool.new(checkpoint_id)
    data = encode_manifest(manifest)
    info = CheckpointInfo(
        checkpoint_id=checkpoint_id,
        chain=(number,),
        size_bytes=packed.summary.size,
        inflated_bytes=packed.summary.inflated_bytes,
        total_bytes=sum(map(len, contents.values())),
        sha256=packed.summary.sha256,
        manifest_sha256=hashlib.sha256(data).hexdigest(),
        journal_sha256=hashlib.sha256(JOURNAL).hexdigest(),
        created_at_ms=number,
    )
    draft.archive.write_bytes(packed.data)
    draft.manifest.write_bytes(data)
    draft.journal.write_bytes(JOURNAL)
    draft.info.write_bytes(encode_info(info))
    return draft, info, manifest


class FailingStore(MemoryStore):
    """Fails at chosen calls, before or after they did what was asked; ``calls`` counts all."""

    remote = True

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.failures: dict[int, Exception] = {}
        """By number of the call, from 0."""
        self.late = False
        """Fail only when it is done."""

    def fail_at(self, call: int, *, late: bool = False, error: Exception | None = None) -> None:
        """Fail at one call, counted from now."""
        self.calls, self.late = 0, late
        self.failures = {call: error or StoreUnavailable("the store is away")}

    async def put_file(
        self, key: str, path: Path, *, sha256: str, given: bool = False
    ) -> ObjectInfo:
        """Count, and fail in turn; likewise below."""
        error = self._turn()
        stored = await super().put_file(key, path, sha256=sha256, given=given)
        return self._end(stored, error)

    async def put_bytes(self, key: str, data: bytes) -> ObjectInfo:  # noqa: D102
        error = self._turn()
        stored = await super().put_bytes(key, data)
        return self._end(stored, error)

    async def get(  # noqa: D102
        self, key: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        error = self._turn()
        async for piece in super().get(key, offset=offset, length=length):
            yield piece
        self._end(None, error)

    async def stat(self, key: str) -> ObjectInfo:  # noqa: D102
        return self._end(await super().stat(key), self._turn())

    async def delete(self, key: str) -> bool:  # noqa: D102
        error = self._turn()
        return self._end(await super().delete(key), error)

    def _turn(self) -> Exception | None:
        error = self.failures.pop(self.calls, None)
        self.calls += 1
        if error is not None and not self.late:
            raise error
        return error

    def _end(self, value: T, error: Exception | None) -> T:
        if error is not None:
            raise error
        return value
