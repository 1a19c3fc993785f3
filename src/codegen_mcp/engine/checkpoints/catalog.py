"""Which checkpoints there are: reads and writes their objects in the store.

What has a metadata object exists; what also has a tombstone is hidden, and only stays for the
checkpoints that need its archive.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, field
from typing import cast

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo
from codegen_mcp.core.errors import AlreadyExists, Corrupt, NotFound
from codegen_mcp.engine.checkpoints.manifest import Manifest, decode_manifest
from codegen_mcp.engine.checkpoints.metadata import MAX_BYTES, decode_info
from codegen_mcp.sandbox.volumes.threads import to_end
from codegen_mcp.stores.base import ObjectStore

ARCHIVE, MANIFEST, JOURNAL, INFO = ".tar.gz", ".manifest.gz", ".journal.gz", ".json"
TOMBSTONE = ".deleted"
_SUFFIXES = (ARCHIVE, MANIFEST, JOURNAL, INFO, TOMBSTONE)
MAX_MANIFEST_BYTES = 512 * 1024 * 1024
CACHED = 4096
CACHED_BYTES = 64 * 1024 * 1024
"""Of names and variables in them: code chooses most of these."""
VERIFIED_AT_ONCE = 2
"""Archives: each takes one of the worker's few threads while its bytes come."""


@dataclass(slots=True)
class Shelf:
    """The objects of one session as they lie in the store."""

    objects: dict[CheckpointId, set[str]] = field(default_factory=dict)
    """Suffixes of the objects of each checkpoint, whole or not."""

    @property
    def newest(self) -> int:
        """Highest number that was ever begun and still shows; 0 when none does."""
        return max((one.number for one in self.objects), default=0)

    @property
    def newest_epoch(self) -> int:
        """Highest epoch in which anything was begun that still shows; 0 when none does."""
        return max((one.epoch for one in self.objects), default=0)

    @property
    def complete(self) -> list[CheckpointId]:
        """Those with metadata, hidden ones too, oldest first."""
        found = [one for one, suffixes in self.objects.items() if INFO in suffixes]
        return sorted(found, key=lambda one: (one.epoch, one.number))

    @property
    def visible(self) -> list[CheckpointId]:
        """Those that can be restored, oldest first."""
        return [one for one in self.complete if TOMBSTONE not in self.objects[one]]


class Catalog:
    """Metadata is immutable, and kept in memory once read."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.verifying = asyncio.Semaphore(VERIFIED_AT_ONCE)
        self._known: dict[CheckpointId, CheckpointInfo] = {}
        self._bytes = 0

    async def shelves(self, session_id: str = "") -> dict[str, Shelf]:
        """Look at one session, or at all."""
        found: dict[str, Shelf] = {}
        prefix = f"{session_id}/" if session_id else "ses_"
        async for item in self.store.list(prefix):
            parsed = parse_key(item.key)
            if parsed is not None:
                checkpoint_id, suffix = parsed
                shelf = found.setdefault(checkpoint_id.session_id, Shelf())
                shelf.objects.setdefault(checkpoint_id, set()).add(suffix)
        return found

    async def shelf(self, session_id: str) -> Shelf:
        """Look at one session."""
        return (await self.shelves(session_id)).get(session_id, Shelf())

    async def info(
        self, checkpoint_id: CheckpointId, *, hidden: bool = False, listed: bool = False
    ) -> CheckpointInfo:
        """Read one.

        Args:
            checkpoint_id: Which.
            hidden: Whether a hidden one will do.
            listed: The caller has just seen it in the store: nobody looks again.

        Raises:
            NotFound: There is none (any more).
            Corrupt: Its metadata is damaged.
            WrongState: A newer version of this program wrote it.
        """
        if not (hidden or listed) and await self.has(checkpoint_id, TOMBSTONE):
            raise not_found(checkpoint_id)
        if listed and (known := self._known.get(checkpoint_id)) is not None:
            return known
        try:
            data = await self.info_data(checkpoint_id)
        except NotFound:
            self._forget(checkpoint_id)
            raise not_found(checkpoint_id) from None
        info = decode_info(data, checkpoint_id)
        self.remember(info)
        return info

    async def info_data(self, checkpoint_id: CheckpointId) -> bytes:
        """Read a metadata object as it is stored. NotFound."""
        return await self._read(checkpoint_id, INFO, MAX_BYTES)

    def remember(self, info: CheckpointInfo) -> None:
        """Keep what is in the store, so that it need not be read again."""
        self._forget(info.checkpoint_id)
        self._bytes += _text_bytes(info)
        while self._known and (len(self._known) >= CACHED or self._bytes > CACHED_BYTES):
            self._forget(next(iter(self._known)))
        self._known[info.checkpoint_id] = info

    def _forget(self, checkpoint_id: CheckpointId) -> None:
        known = self._known.pop(checkpoint_id, None)
        if known is not None:
            self._bytes -= _text_bytes(known)

    async def manifest(self, info: CheckpointInfo) -> tuple[Manifest, bytes]:
        """Read and check a manifest; also its object's bytes.

        Raises:
            NotFound: It is missing. Corrupt: It is damaged.
        """
        try:
            data = await self._read(info.checkpoint_id, MANIFEST, MAX_MANIFEST_BYTES)
        except NotFound:
            raise missing(info.checkpoint_id, "manifest") from None

        def decode() -> Manifest:
            check_digest(data, info.manifest_sha256, info.checkpoint_id, "manifest")
            return decode_manifest(data, expected_checkpoint=str(info.checkpoint_id))

        return await to_end(decode), data

    async def check_manifest(self, info: CheckpointInfo) -> None:
        """Read a manifest back that was just written. NotFound, Corrupt."""
        data = await self._read(info.checkpoint_id, MANIFEST, MAX_MANIFEST_BYTES)
        check_digest(data, info.manifest_sha256, info.checkpoint_id, "manifest")

    async def journal(self, info: CheckpointInfo) -> bytes:
        """Read and check the journal object; empty when there is none."""
        if not info.journal_sha256:
            return b""
        try:
            data = await self._read(info.checkpoint_id, JOURNAL, MAX_MANIFEST_BYTES)
        except NotFound:
            raise missing(info.checkpoint_id, "journal") from None
        check_digest(data, info.journal_sha256, info.checkpoint_id, "journal")
        return data

    def archive(self, checkpoint_id: CheckpointId) -> AsyncGenerator[bytes, None]:
        """Read an archive's bytes. NotFound at the first piece when it is missing."""
        pieces = self.store.get(checkpoint_id.key + ARCHIVE)
        return cast("AsyncGenerator[bytes, None]", pieces)  # as all stores give it

    async def newest(self, session_id: str) -> CheckpointInfo | None:
        """Metadata of the newest of a session that can be restored; None where there is none."""
        visible = (await self.shelf(session_id)).visible
        return await self.info(visible[-1]) if visible else None

    async def hide(self, checkpoint_id: CheckpointId) -> None:
        """Delete, as far as anybody can see; idempotent."""
        with contextlib.suppress(AlreadyExists):
            await self.store.put_bytes(checkpoint_id.key + TOMBSTONE, b"")
        self._forget(checkpoint_id)

    async def unhide(self, checkpoint_id: CheckpointId) -> None:
        """Let a hidden one be seen again; idempotent."""
        await self.store.delete(checkpoint_id.key + TOMBSTONE)

    async def remove(self, checkpoint_id: CheckpointId, suffixes: Collection[str]) -> None:
        """Delete its objects; a hidden one stays hidden until the last has gone."""
        for suffix in (ARCHIVE, MANIFEST, JOURNAL, INFO, TOMBSTONE):
            if suffix in suffixes:
                await self.store.delete(checkpoint_id.key + suffix)
        self._forget(checkpoint_id)

    async def has(self, checkpoint_id: CheckpointId, suffix: str) -> bool:
        """Whether there is this object of a checkpoint."""
        try:
            await self.store.stat(checkpoint_id.key + suffix)
        except NotFound:
            return False
        return True

    async def _read(self, checkpoint_id: CheckpointId, suffix: str, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in self.store.get(checkpoint_id.key + suffix):
            size += len(piece)
            if size > limit:
                raise Corrupt(
                    f"an object of checkpoint {str(checkpoint_id)!r} is longer than {limit} bytes",
                    reason="CHECKPOINT_DAMAGED",
                )
            pieces.append(piece)
        return b"".join(pieces)


def _text_bytes(info: CheckpointInfo) -> int:
    texts = [*info.modified_files, *info.installed_packages]
    texts += [text for one in (info.env, info.metadata) for pair in one.items() for text in pair]
    return sum(map(len, texts))


def parse_key(key: str) -> tuple[CheckpointId, str] | None:
    """Read ``{session}/{epoch}/{number}{suffix}``; None for what is no object of ours."""
    parts = key.split("/")
    if len(parts) != 3 or not parts[0].startswith("ses_") or not parts[1].isdecimal():
        return None
    number, dot, rest = parts[2].partition(".")
    if not number.isdecimal() or dot + rest not in _SUFFIXES:
        return None
    checkpoint_id = CheckpointId(parts[0], int(parts[1]), int(number))
    return (checkpoint_id, dot + rest) if checkpoint_id.key == key[: -len(dot + rest)] else None


def check_digest(data: bytes, expected: str, checkpoint_id: CheckpointId, what: str) -> None:
    """Compare an object with what the metadata says of it.

    Raises:
        Corrupt: It is another.
    """
    if hashlib.sha256(data).hexdigest() != expected:
        raise Corrupt(
            f"the {what} of checkpoint {str(checkpoint_id)!r} is damaged (another sha256 than "
            "recorded); use another checkpoint of the session",
            reason="CHECKPOINT_DAMAGED",
        )


def not_found(checkpoint_id: CheckpointId | str) -> NotFound:
    """Return the one answer for a checkpoint that never was, and for one that is gone."""
    return NotFound(
        f"there is no checkpoint {str(checkpoint_id)[:120]!r}; list those of a session with "
        "ListCheckpoints",
        reason="CHECKPOINT_NOT_FOUND",
    )


def missing(checkpoint_id: CheckpointId, what: str) -> NotFound:
    """Return the answer where a part that a checkpoint needs is not in the store."""
    return NotFound(
        f"the {what} of checkpoint {str(checkpoint_id)!r} is not in the store any more, and a "
        "restore needs it; use another checkpoint of the session",
        reason="CHECKPOINT_INCOMPLETE",
    )


def needed(infos: Sequence[CheckpointInfo]) -> set[int]:
    """Numbers whose archives the given checkpoints of one session need."""
    return {number for info in infos for number in info.chain}
