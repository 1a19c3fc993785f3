"""Verifies a checkpoint's whole chain, and fills a fresh slot with it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo, Entry, EntryKind
from codegen_mcp.core.errors import Corrupt, LimitExceeded, NotFound, SandboxUnavailable
from codegen_mcp.core.limits import KIB, MIB, ResourceLimits, RunLimits
from codegen_mcp.engine.checkpoints.catalog import MAX_MANIFEST_BYTES, Catalog, missing
from codegen_mcp.engine.checkpoints.live_state import LiveState, State
from codegen_mcp.engine.checkpoints.manifest import Manifest
from codegen_mcp.engine.checkpoints.refill import ArchiveSource, refill
from codegen_mcp.engine.checkpoints.spool import Spool
from codegen_mcp.engine.checkpoints.taker import LIVE_STATE
from codegen_mcp.engine.checkpoints.tree_compare import check_volume
from codegen_mcp.engine.checkpoints.tree_table import walk
from codegen_mcp.engine.slot import Slot
from codegen_mcp.sandbox.base import Sandbox
from codegen_mcp.sandbox.volumes.threads import to_end

log = structlog.get_logger()

BASE_S = 60.0
BYTES_PER_S = 10 * 1024 * 1024
"""A refill slower than this, after BASE_S, is given up."""
NAMES_PER_S = 500
PIECE_BYTES = 1024 * 1024
PROGRAM_BYTES = 64 * MIB
"""Of memory, for the program that fills a slot and its buffers."""
NAME_BYTES = 800
"""What it needs for each name, beside the text."""
TAKE_BACK_TRIES, TAKE_BACK_PAUSE_S = 50, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One verified archive of a chain."""

    checkpoint_id: CheckpointId
    inflated_bytes: int
    copy: int
    """Descriptor of a copy on this machine; -1: it is read from the store again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A checkpoint whose every object was read and is what it should be."""

    info: CheckpointInfo
    manifest: Manifest
    lines: bytes
    """The manifest, inflated."""
    journal: bytes
    """As stored."""
    links: Sequence[Link]

    def close(self) -> None:
        """Let the copies go."""
        for link in self.links:
            if link.copy >= 0:
                os.close(link.copy)


class Restorer:
    """Reads checkpoints; knows nothing of sessions but slots."""

    def __init__(self, catalog: Catalog, spool: Spool, *, copies: bool) -> None:
        """``copies``: archives come over a network, and are read from it only once."""
        self._catalog = catalog
        self._spool = spool
        self._copies = copies

    async def verify(self, info: CheckpointInfo) -> Verified:
        """Read the whole chain; the caller closes what it gets.

        Raises:
            NotFound: A part that is needed is missing. Corrupt: One is damaged.
        """
        manifest, data = await self._catalog.manifest(info)
        lines = await to_end(lambda: _inflate(data))
        sources = {e.source for e in manifest.entries if e.kind is EntryKind.FILE}
        if not sources <= set(info.chain):
            raise Corrupt(
                f"checkpoint {str(info.checkpoint_id)!r} needs archives that its chain does not "
                "name; use another checkpoint of the session",
                reason="CHECKPOINT_DAMAGED",
            )
        journal = await self._catalog.journal(info)
        links: list[Link] = []
        verified = Verified(info=info, manifest=manifest, lines=lines, journal=journal, links=links)
        try:
            for number in info.chain:
                link = await self._link(replace(info.checkpoint_id, number=number))
                links.append(link)
        except BaseException:
            verified.close()
            raise
        return verified

    async def fill(self, slot: Slot, verified: Verified) -> None:
        """Fill a fresh slot, and compare.

        Raises:
            Corrupt: The bytes are not what the manifest says. LimitExceeded: They do not fit.
            SandboxUnavailable: The sandbox was lost.
        """
        sandbox, info = slot.sandbox, verified.info
        if sandbox is None:
            raise SandboxUnavailable("the sandbox was lost; try again")
        entries = verified.manifest.entries
        solid, memory_bytes = await to_end(lambda: _needs(entries))
        if solid > slot.limits.disk_bytes:
            raise LimitExceeded(
                f"checkpoint {str(info.checkpoint_id)!r} has {solid} bytes, more than the "
                f"session's disk of {slot.limits.disk_bytes}; restore it with a larger disk"
            )
        seconds = BASE_S + (info.total_bytes + info.inflated_bytes) / BYTES_PER_S
        seconds += len(entries) / NAMES_PER_S
        async with roomy(sandbox, slot.limits, memory_bytes):
            await refill(
                sandbox,
                manifest=verified.manifest,
                manifest_lines=verified.lines,
                archives=[self._source(link) for link in verified.links],
                limits=RunLimits(timeout_s=seconds, output_bytes=64 * KIB),
                python=slot.interpreter.executable,
                root=slot.volume.root,
            )
        await to_end(lambda: self._check(slot, verified))
        await sandbox.packages_changed()

    def _check(self, slot: Slot, verified: Verified) -> None:
        root = slot.volume.root
        check_volume(root, verified.manifest.entries)
        try:
            live_state(root, str(verified.info.checkpoint_id)).save(slot.directory / LIVE_STATE)
        except OSError as error:  # only a hint for the next checkpoint
            log.warning("checkpoint.live_state_not_saved", error=str(error))

    async def _link(self, checkpoint_id: CheckpointId) -> Link:
        """Read one archive and compare it with its metadata."""
        try:
            info = await self._catalog.info(checkpoint_id, hidden=True)
        except NotFound:
            raise missing(checkpoint_id, "metadata") from None
        digest, size = hashlib.sha256(), 0
        if self._copies:
            self._spool.room().check(info.size_bytes)
        copy = await to_end(self._spool.scratch, os.close) if self._copies else -1

        def take(piece: bytes) -> None:
            digest.update(piece)
            if copy >= 0:
                _write(copy, piece)

        try:
            async with aclosing(self._catalog.archive(checkpoint_id)) as pieces:
                async for piece in pieces:
                    size += len(piece)
                    await to_end(partial(take, piece))
            if size != info.size_bytes or digest.hexdigest() != info.sha256:
                raise Corrupt(
                    f"the archive of checkpoint {str(checkpoint_id)!r} is damaged ({size} bytes "
                    f"of {info.size_bytes}, or another sha256); use another checkpoint of the "
                    "session",
                    reason="CHECKPOINT_DAMAGED",
                )
        except NotFound:
            _close(copy)
            raise missing(checkpoint_id, "archive") from None
        except BaseException:
            _close(copy)
            raise
        return Link(checkpoint_id=checkpoint_id, inflated_bytes=info.inflated_bytes, copy=copy)

    def _source(self, link: Link) -> ArchiveSource:
        pieces = _read(link.copy) if link.copy >= 0 else self._catalog.archive(link.checkpoint_id)
        return ArchiveSource(
            number=link.checkpoint_id.number, inflated_bytes=link.inflated_bytes, pieces=pieces
        )


@asynccontextmanager
async def roomy(sandbox: Sandbox, limits: ResourceLimits, memory_bytes: int) -> AsyncIterator[None]:
    """Give our program the memory and CPU that it needs, where the session has less.

    Else a session that could make its files could not get them back.

    Raises:
        LimitExceeded: At the end: the memory cannot be taken back.
    """
    wider = replace(
        limits,
        memory_bytes=max(limits.memory_bytes, memory_bytes),
        cpu_millicores=max(limits.cpu_millicores, 1000),
    )
    if wider == limits:
        yield
        return
    await sandbox.set_limits(wider)
    yield
    for attempt in range(TAKE_BACK_TRIES):
        try:
            await sandbox.set_limits(limits)
            return
        except LimitExceeded:  # until what was written is on disk
            if attempt == TAKE_BACK_TRIES - 1:
                raise
            await asyncio.sleep(TAKE_BACK_PAUSE_S)


def _needs(entries: Sequence[Entry]) -> tuple[int, int]:
    """(disk, memory) in bytes that it takes to make these names."""
    solid = sum(one.size for one in entries if not one.sparse)
    names = sum(NAME_BYTES + 2 * len(one.path) + len(one.target) for one in entries)
    return solid, PROGRAM_BYTES + names


def live_state(root: Path, checkpoint: str) -> LiveState:
    """Note what each file is now; its content must be that of the checkpoint. Blocks."""
    states: dict[bytes, State] = {}
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in (b"workspace", b"venv"):
            for seen in walk(fd, name):
                if seen.kind is EntryKind.FILE:
                    states[seen.path] = State.of(seen)
    finally:
        os.close(fd)
    return LiveState(checkpoint, time.time_ns(), states)


async def _read(fd: int) -> AsyncIterator[bytes]:
    offset = 0
    while piece := await asyncio.to_thread(os.pread, fd, PIECE_BYTES, offset):
        yield piece
        offset += len(piece)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _inflate(data: bytes) -> bytes:
    """Inflate a manifest that was decoded before: it is sound."""
    unpacker = zlib.decompressobj(wbits=31)
    return unpacker.decompress(data, MAX_MANIFEST_BYTES)
