"""Takes one checkpoint of a live session into a draft: consistent, and not yet in the store."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo, Entry, EntryKind
from codegen_mcp.engine.checkpoints.archive_writer import ArchiveSummary, ArchiveWriter
from codegen_mcp.engine.checkpoints.aside import Aside
from codegen_mcp.engine.checkpoints.capture import ROOTS, Base, Capture, Captured
from codegen_mcp.engine.checkpoints.facts import changed_paths, installed_packages, shown_paths
from codegen_mcp.engine.checkpoints.journal import packed
from codegen_mcp.engine.checkpoints.live_state import LiveState
from codegen_mcp.engine.checkpoints.manifest import Manifest, encode_manifest
from codegen_mcp.engine.checkpoints.metadata import encode_info
from codegen_mcp.engine.checkpoints.room import BoundedFile, Room
from codegen_mcp.engine.checkpoints.spool import Draft, Spool
from codegen_mcp.engine.checkpoints.tree_watch import Changes, TreeWatch
from codegen_mcp.engine.checkpoints.upload import Upload
from codegen_mcp.engine.checkpoints.watches import start_watch
from codegen_mcp.engine.checkpoints.writers import Writers, mapped_writers
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.task_journal import FILE_NAME
from codegen_mcp.engine.uninterrupted import settled
from codegen_mcp.sandbox.volumes.threads import to_end

LIVE_STATE = "checkpoint.live"
"""Beside a session's files: what each name was at its last checkpoint."""
DRAIN_S = 0.2
"""How often a watch is emptied while the tree is read."""
ROUNDS = 4
"""How often at most what was touched is packed again before code has to stand still."""
FEW = 32
"""Touched names that are not worth a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to take."""

    checkpoint_id: CheckpointId
    name: str
    parent: CheckpointInfo | None
    """None: a full one."""
    base: Sequence[Entry]
    """The parent's entries."""
    trigger: str
    storage_url: str = ""
    stored_here: bool = False
    """The store is on the disk of the drafts, and needs as much room again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A draft whose files are written, and what is known of the live tree."""

    draft: Draft
    info: CheckpointInfo
    manifest: Manifest
    live: LiveState
    closing: asyncio.Future[None]
    """The watch, on its way out: for the taker to await, once nobody waits for him."""
    upload: Upload | None
    """Of the archive, if it has begun."""


Begin = Callable[[Draft, CheckpointId, str], Upload | None]
"""Begins to store an archive (of this sha256), if that is done at once."""


async def take(session: Session, order: Order, spool: Spool, begin: Begin) -> Taken:
    """Capture a session; its state should be CHECKPOINTING meanwhile.

    Args:
        session: Of which.
        order: What to take.
        spool: Where the draft is made.
        begin: Told as soon as the archive is whole.

    Raises:
        WrongState: A run cannot be frozen.
        OSError: The worker's disk is full, or the session's cannot be read.
    """
    draft = await to_end(lambda: spool.new(order.checkpoint_id), Draft.remove)
    try:
        return await _Taking(session, order, spool, draft).run(begin)
    except BaseException:
        await to_end(draft.remove)
        raise


class _Taking:
    def __init__(self, session: Session, order: Order, spool: Spool, draft: Draft) -> None:
        self._session = session
        self._order = order
        self._spool = spool
        self._draft = draft
        self._changes = Changes()
        self._journal = b""
        self._closing: asyncio.Future[None] | None = None
        """Of the watch, for which the kernel takes longer than for all the rest."""
        self._upload: Upload | None = None

    async def run(self, begin: Begin) -> Taken:
        try:
            return await self._run(begin)
        except BaseException:
            if self._closing is not None:
                await settled(self._closing)
            if self._upload is not None:
                await self._upload.undo()
            raise

    async def _run(self, begin: Begin) -> Taken:
        session, number = self._session, self._order.checkpoint_id.number
        room = self._spool.room()
        room.check()
        root_fd = os.open(session.slot.volume.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        aside = None
        file = _create(self._draft.archive, room)
        try:
            aside = Aside(self._spool.scratch, room)
            base = await to_end(self._base)
            with ArchiveWriter(file) as writer:
                capture = Capture(root_fd, writer, aside, number, base)
                taken_ns = time.time_ns()
                how, freeze_ms = await self._capture(capture, root_fd)
                record = session.record
                captured, summary = await to_end(lambda: (capture.complete(), writer.finish()))
        finally:
            file.close()
            os.close(root_fd)
            if aside is not None:
                aside.close()
        if self._order.stored_here:
            room.check(summary.size)
        self._upload = begin(self._draft, self._order.checkpoint_id, summary.sha256)
        live = LiveState(str(self._order.checkpoint_id), taken_ns, captured.states)
        info = CheckpointInfo(
            checkpoint_id=self._order.checkpoint_id,
            name=self._order.name,
            parent=self._order.parent.checkpoint_id.number if self._order.parent else 0,
            chain=_chain(self._order, captured.entries),
            workspace_id=record.workspace_id,
            user_id=record.user_id,
            created_at_ms=taken_ns // 1_000_000,
            interpreter=record.interpreter,
            env=dict(record.env),
            metadata=dict(record.metadata),
            limits=record.limits,
            idle_timeout_s=record.idle_timeout_s,
            durability=record.durability,
            checkpoint_interval_s=record.checkpoint_interval_s,
            auto_restore=record.auto_restore,
            allow_network=record.allow_network,
            allow_hosts=record.allow_hosts,
            freeze_ms=freeze_ms,
            consistency=how,
            trigger=self._order.trigger,
            storage_url=self._order.storage_url,
        )
        return await to_end(lambda: self._write(info, captured, summary, live))

    async def _capture(self, capture: Capture, root_fd: int) -> tuple[str, float]:
        session = self._session
        watch = await to_end(lambda: start_watch(root_fd, ROOTS), TreeWatch.close)
        try:
            await self._step(lambda: capture.survey(self._writers()), capture, watch)
            for _ in range(ROUNDS):
                if self._changes.overflow or _size(self._changes) <= FEW:
                    break
                since, self._changes = self._changes, Changes()
                await self._step(lambda c=since: capture.catch_up(c), capture, watch)  # type: ignore[misc]
            async with session.still(freeze=True) as still:
                idle = still.how == "idle"
                await to_end(lambda: self._recheck(capture, watch, idle=idle))
                ended = time.monotonic()
            return still.how, 0.0 if idle else round((ended - still.since) * 1000, 3)
        finally:
            self._closing = asyncio.ensure_future(to_end(watch.close))

    async def _step(self, work: Callable[[], object], capture: Capture, watch: TreeWatch) -> None:
        """Do one step of the capture in a thread, and keep the watch from filling up meanwhile."""
        step = asyncio.ensure_future(to_end(work))
        try:
            while not step.done():
                await asyncio.wait([step], timeout=DRAIN_S)
                self._changes.add(await to_end(watch.drain))
                self._session.check_open()  # nobody needs a checkpoint of what is destroyed
        finally:
            if not step.done():
                capture.stop()
                cancelled = await settled(step)
                step.exception()  # ``Stopped``, by us
                if cancelled is not None:
                    raise cancelled
        await step

    def _recheck(self, capture: Capture, watch: TreeWatch, *, idle: bool) -> None:
        self._changes.add(watch.drain())
        writers = Writers() if idle else self._writers()
        # As an ordinary user we may not look into every guest; see docs/concepts/checkpoint.md.
        self._changes.overflow |= bool(writers.unseen)
        capture.recheck(self._changes, writers)
        self._journal = _read(self._session.directory / FILE_NAME)

    def _writers(self) -> Writers:
        sandbox = self._session.slot.sandbox
        return Writers() if sandbox is None else mapped_writers(sandbox.processes())

    def _base(self) -> Base | None:
        parent = self._order.parent
        if parent is None:
            return None
        live = LiveState.load(self._session.directory / LIVE_STATE)
        if live is not None and live.checkpoint != str(parent.checkpoint_id):
            live = None
        return Base({entry.path: entry for entry in self._order.base}, live)

    def _write(
        self,
        info: CheckpointInfo,
        captured: Captured,
        summary: ArchiveSummary,
        live: LiveState,
    ) -> Taken:
        draft = self._draft
        modified, removed = changed_paths(self._order.base, captured.entries)
        manifest = Manifest(str(info.checkpoint_id), info.parent, captured.entries, removed)
        manifest_data = encode_manifest(manifest)
        draft.manifest.write_bytes(manifest_data)
        journal_data, last_sequence = packed(self._journal)
        if journal_data:
            draft.journal.write_bytes(journal_data)
        shown, count = shown_paths([*modified, *removed])
        info = replace(
            info,
            installed_packages=installed_packages(captured.entries),
            modified_files=shown,
            modified_count=count,
            entries=len(captured.entries),
            total_bytes=sum(e.size for e in captured.entries if e.kind is EntryKind.FILE),
            size_bytes=summary.size,
            inflated_bytes=summary.inflated_bytes,
            sha256=summary.sha256,
            manifest_sha256=sha256_hex(manifest_data),
            journal_sha256=sha256_hex(journal_data) if journal_data else "",
            last_sequence=last_sequence,
        )
        draft.info.write_bytes(encode_info(info))
        assert self._closing is not None
        return Taken(
            draft=draft,
            info=info,
            manifest=manifest,
            live=live,
            closing=self._closing,
            upload=self._upload,
        )


def _chain(order: Order, entries: Sequence[Entry]) -> tuple[int, ...]:
    """Numbers whose archives hold bytes of these entries, and the checkpoint itself."""
    sources = {entry.source for entry in entries if entry.kind is EntryKind.FILE}
    return tuple(sorted(sources | {order.checkpoint_id.number}))


def sha256_hex(data: bytes) -> str:
    """Return the sha256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _create(path: Path, room: Room) -> BinaryIO:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return io.BufferedRandom(BoundedFile(fd, room))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _size(changes: Changes) -> int:
    return len(changes.paths) + len(changes.inodes)
