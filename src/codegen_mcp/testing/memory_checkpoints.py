"""Checkpoints in memory: the second implementation of ``engine.checkpoints.base.Checkpoints``.

For tests of what lies above the engine. Each checkpoint holds the whole workspace, so that chains
are only told of. Tasks' records are not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codegen_mcp.core.checkpoint import (
    CheckpointId,
    CheckpointInfo,
    Restored,
    check_checkpoint_name,
    parse_checkpoint_id,
)
from codegen_mcp.core.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    InvalidRequest,
    NotFound,
    WorkerError,
)
from codegen_mcp.core.ids import new_session_id
from codegen_mcp.core.session import Durability, SessionConfig
from codegen_mcp.engine.checkpoints.base import Verified
from codegen_mcp.testing.memory_export import pack, unpack
from codegen_mcp.testing.memory_sessions import MemorySessions, refuse_busy
from codegen_mcp.testing.memory_workspace import Entry, MemoryWorkspace

MAX_CHAIN = 8
MAX_MODIFIED = 1000


@dataclass(slots=True)
class Kept:
    """One checkpoint and what it holds."""

    info: CheckpointInfo
    entries: Mapping[bytes, Entry]
    hidden: bool = False
    """Deleted, but a later one builds on it."""


class MemoryCheckpoints:
    """Checkpoints in a dictionary; they outlive their sessions."""

    def __init__(self, sessions: MemorySessions) -> None:
        self._sessions = sessions
        self._kept: dict[CheckpointId, Kept] = {}
        self._restores: dict[str, int] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        self.refusal: WorkerError | None = None
        """Set it, and each save raises it."""

    async def save(
        self,
        session_id: str,
        *,
        name: str = "",
        incremental: bool = False,
        trigger: str = "request",
    ) -> CheckpointInfo:
        """Copy the workspace."""
        view = self._sessions.get(session_id)
        check_checkpoint_name(name)
        if self.refusal is not None:
            raise self.refusal
        entries = self._sessions.workspace(session_id).entries
        epoch = view.epoch
        number = self._numbers[session_id, epoch] = self._numbers.get((session_id, epoch), 0) + 1
        parent = self._parent(session_id, epoch) if incremental else None
        before = parent.entries if parent is not None else {}
        modified = sorted(
            path for path in before.keys() | entries.keys() if before.get(path) != entries.get(path)
        )
        digest = digest_of(entries)
        checkpoint_id = CheckpointId(session_id, epoch, number)
        info = CheckpointInfo(
            checkpoint_id=checkpoint_id,
            name=name,
            parent=parent.info.checkpoint_id.number if parent is not None else 0,
            chain=(*(parent.info.chain if parent is not None else ()), number),
            workspace_id=view.workspace_id,
            user_id=view.user_id,
            created_at_ms=time.time_ns() // 1_000_000,
            interpreter=view.language,
            env=self._sessions.environments[session_id],
            metadata=view.metadata,
            limits=view.limits,
            idle_timeout_s=self._sessions.idle_timeouts.get(session_id, 0.0),
            durability=view.durability,
            auto_restore=view.auto_restore,
            modified_files=[path.decode("utf-8", "backslashreplace") for path in modified][
                :MAX_MODIFIED
            ],
            modified_count=len(modified),
            entries=len(entries),
            total_bytes=sum(len(entry.data or b"") for entry in entries.values()),
            size_bytes=sum(len(entries[path].data or b"") for path in modified if path in entries),
            sha256=digest,
            manifest_sha256=digest,
            storage_url=f"memory:///{checkpoint_id.key}.tar.gz",
            consistency="idle" if not view.active_tasks else "frozen",
            trigger=trigger,
        )
        self._kept[checkpoint_id] = Kept(info, entries)
        return info

    async def restore(
        self,
        checkpoint_id: str,
        *,
        create_new_session: bool,
        session_id: str = "",
        epoch: int = 0,
    ) -> Restored:
        """Copy the files back."""
        kept = self._find(checkpoint_id)
        check(kept)
        if create_new_session:
            with self._sessions.ownership.claimed([session_id] if session_id else []):
                self._sessions.check_room(1)
            return await self._made(kept, session_id or new_session_id(), epoch or 1, lost="")
        own = kept.info.checkpoint_id.session_id
        if session_id not in {"", own}:
            raise InvalidRequest(f"session_id {session_id!r} is not that of {checkpoint_id!r}")
        session_id = own
        lost = "the session had ended; what it did after the checkpoint is gone"
        alive = [view for view in self._sessions.list() if view.session_id == session_id]
        if alive:
            refuse_busy(alive[0])
            lost = lost_since(kept, self._sessions.workspace(session_id).entries)
        else:
            self._sessions.check_room(1)
        self._restores[session_id] = self._restores.get(session_id, 1) + 1
        held = alive[0].epoch if alive else kept.info.checkpoint_id.epoch
        if epoch and epoch < held:
            raise Conflict(f"session {session_id!r} has epoch {held}", reason="STALE_EPOCH")
        return await self._made(kept, session_id, epoch or held, lost=lost)

    async def revive(self, session_id: str, *, epoch: int = 0) -> Restored | None:
        """Restore the newest of a session that is gone and asked for that."""
        newest = self.last(session_id)
        if not newest or not (await self.get(newest)).auto_restore:
            return None
        return await self.restore(newest, create_new_session=False, epoch=epoch)

    async def fork(
        self, session_id: str, count: int, *, new_ids: Sequence[str] = ()
    ) -> Sequence[str]:
        """Copy a session."""
        made = await self._sessions.fork(session_id, count, new_ids=new_ids)
        return [view.session_id for view in made]

    async def list(self, session_id: str = "") -> Sequence[CheckpointInfo]:
        """Filter."""
        shown = [
            kept.info
            for kept in self._kept.values()
            if not kept.hidden and session_id in {"", kept.info.checkpoint_id.session_id}
        ]
        return sorted(shown, key=order, reverse=True)

    async def get(self, checkpoint_id: str) -> CheckpointInfo:
        """Look one up."""
        return self._find(checkpoint_id).info

    async def delete(self, checkpoint_id: str) -> None:
        """Hide it, and drop what nothing needs."""
        self._find(checkpoint_id).hidden = True
        shown = [kept for kept in self._kept.values() if not kept.hidden]
        needed = {
            replace(kept.info.checkpoint_id, number=number)
            for kept in shown
            for number in kept.info.chain
        }
        self._kept = {id_: kept for id_, kept in self._kept.items() if id_ in needed}

    async def verify(self, session_id: str = "") -> AsyncIterator[Verified]:
        """Hash again."""
        for info in await self.list(session_id):
            kept = self._kept[info.checkpoint_id]
            problem = ""
            try:
                check(kept)
            except Corrupt as error:
                problem = error.message
            yield Verified(
                checkpoint_id=info.checkpoint_id,
                ok=not problem,
                problem=problem,
                bytes_read=info.size_bytes,
            )

    async def export(self, checkpoint_id: str, target: Path) -> int:
        """Write facts and files."""
        kept = self._find(checkpoint_id)
        return await asyncio.to_thread(pack, kept.info, kept.entries, target)

    async def import_(self, source: Path) -> CheckpointInfo:
        """Read facts and files."""
        info, entries = await asyncio.to_thread(unpack, source)
        kept = Kept(replace(info, parent=0, chain=(info.checkpoint_id.number,)), entries)
        check(kept)
        if info.checkpoint_id in self._kept:
            raise AlreadyExists(
                f"checkpoint {str(info.checkpoint_id)!r} is here already; nothing was changed",
                reason="CHECKPOINT_EXISTS",
            )
        self._kept[info.checkpoint_id] = kept
        return kept.info

    def last(self, session_id: str) -> str:
        """Newest of a session."""
        found = [
            kept.info
            for kept in self._kept.values()
            if kept.info.checkpoint_id.session_id == session_id and not kept.hidden
        ]
        return str(max(found, key=order).checkpoint_id) if found else ""

    def damage(self, checkpoint_id: str) -> None:
        """Change what a checkpoint holds, as a bad disk would."""
        kept = self._find(checkpoint_id)
        kept.entries = {**kept.entries, b"damage": Entry(b"\0", 0o100644, 0)}

    async def _made(self, kept: Kept, session_id: str, epoch: int, *, lost: str) -> Restored:
        info = kept.info
        config = SessionConfig(
            workspace_id=info.workspace_id,
            user_id=info.user_id,
            language=info.interpreter,
            limits=info.limits,
            metadata=info.metadata,
            auto_restore=info.auto_restore,
            durability=Durability(info.durability),
        )
        view = self._sessions.view_of(
            session_id,
            config,
            restored_from=str(info.checkpoint_id),
            lost=lost,
            incarnation=self._restores.setdefault(session_id, 1),
            epoch=epoch,
        )
        if info.idle_timeout_s:
            self._sessions.idle_timeouts[session_id] = info.idle_timeout_s
        workspace = MemoryWorkspace(info.limits.disk_bytes, kept.entries)
        self._sessions.put(view, workspace, info.env)
        return Restored(session_id=session_id, info=info, lost=lost)

    def _parent(self, session_id: str, epoch: int) -> Kept | None:
        """Newest one of this epoch that a next one may build on."""
        newest = [
            kept
            for id_, kept in self._kept.items()
            if (id_.session_id, id_.epoch) == (session_id, epoch)
        ][-1:]
        return newest[0] if newest and len(newest[0].info.chain) < MAX_CHAIN else None

    def _find(self, checkpoint_id: str) -> Kept:
        kept = self._kept.get(parse_checkpoint_id(checkpoint_id))
        if kept is None or kept.hidden:
            raise NotFound(
                f"there is no checkpoint {checkpoint_id!r}; list those of a session with "
                "ListCheckpoints",
                reason="CHECKPOINT_NOT_FOUND",
            )
        return kept


def order(info: CheckpointInfo) -> tuple[int, str, int, int]:
    """Order of making."""
    id_ = info.checkpoint_id
    return info.created_at_ms, id_.session_id, id_.epoch, id_.number


def digest_of(entries: Mapping[bytes, Entry]) -> str:
    """Hash of names, modes, times and bytes."""
    return hashlib.sha256(repr(sorted(entries.items())).encode()).hexdigest()


def check(kept: Kept) -> None:
    """Refuse what is not what was saved."""
    if digest_of(kept.entries) != kept.info.sha256:
        raise Corrupt(
            f"checkpoint {str(kept.info.checkpoint_id)!r} is damaged: its archive has another "
            "sha256; use another one of the session",
            reason="CHECKPOINT_DAMAGED",
        )


def lost_since(kept: Kept, now: Mapping[bytes, Entry]) -> str:
    """Say in words what goes when the files become those of the checkpoint."""
    changed = sum(
        kept.entries.get(path) != now.get(path) for path in kept.entries.keys() | now.keys()
    )
    return f"changes to {changed} files since {str(kept.info.checkpoint_id)!r}" if changed else ""
