"""What a dead worker left: its sessions are taken over, everything else of it is deleted."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from codegen_mcp.core.errors import Corrupt, InvalidRequest
from codegen_mcp.engine import session_store
from codegen_mcp.engine.ports import OpensWorkspaces, OpenWorkspace, TaskRecords
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.slot_factory import SlotFactory
from codegen_mcp.engine.state_directory import StateDirectory
from codegen_mcp.sandbox.volumes.threads import to_end
from codegen_mcp.sandbox.volumes.trees import chown_tree

log = structlog.get_logger()

AT_ONCE = 4
"""Volumes attached at the same time."""
_DAMAGE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EUCLEAN, errno.EINVAL, errno.EIO, errno.EBADMSG}
)
"""What the kernel says of files that are damaged or gone."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """A session that was taken over; it has no sandbox yet."""

    record: SessionRecord
    slot: Slot
    workspace: OpenWorkspace


@dataclass(slots=True)
class Adoption:
    """What became of everything that was found."""

    adopted: list[Adopted] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    """Sessions that can never be adopted."""
    left: list[str] = field(default_factory=list)
    """Sessions that could not be adopted now; they lie where they are for the next start.

    Their host users stay taken, so that no other session ever owns their files.
    """


def clear_remains(state: StateDirectory, discard: Callable[[Path], None]) -> None:
    """Hand over every slot and everything in the trash for deletion."""
    for path in [*state.slots.iterdir(), *state.trash.iterdir()]:
        discard(path)


async def adopt_sessions(
    state: StateDirectory,
    factory: SlotFactory,
    records: TaskRecords | None,
    open_workspace: OpensWorkspaces,
    discard: Callable[[Path], None],
) -> Adoption:
    """Take over every session: same id, incarnation + 1, files as they lie.

    Raises:
        WrongState: A newer version of this program wrote one; nothing was deleted.
    """
    found = sorted(state.sessions.iterdir())
    loaded: list[tuple[Path, SessionRecord | Corrupt]] = []
    for path in found:
        try:
            record = session_store.load(path)
            if record.session_id != path.name:
                raise Corrupt(f"{str(path)!r} holds the record of another session")
            loaded.append((path, record))
        except Corrupt as error:
            loaded.append((path, error))
    # All claims come before any lease, which could take the user of a session further down.
    claims = {
        path: factory.claim(record.identity)
        for path, record in loaded
        if isinstance(record, SessionRecord)
    }
    result = Adoption()
    limit = asyncio.Semaphore(AT_ONCE)

    async def adopt(path: Path, record: SessionRecord | Corrupt) -> None:
        async with limit:
            try:
                if isinstance(record, Corrupt):
                    raise record
                slot = await factory.adopt(path, record, claims[path])
                result.adopted.append(
                    await _take_over(slot, record, factory, records, open_workspace)
                )
            except (Corrupt, InvalidRequest) as error:
                if _may_pass(error):
                    log.error("session.left_behind", session_id=path.name, why=error.message)
                    result.left.append(path.name)
                    return
                log.error("session.not_adopted", session_id=path.name, why=error.message)
                result.deleted.append(path.name)
                discard(path)
                await factory.release(claims.get(path))
            except Exception as error:
                log.exception("session.left_behind", session_id=path.name, why=str(error))
                result.left.append(path.name)

    await asyncio.gather(*(adopt(path, record) for path, record in loaded))
    result.adopted.sort(key=lambda one: (one.record.created_at_ms, one.record.session_id))
    return result


async def _take_over(
    slot: Slot,
    record: SessionRecord,
    factory: SlotFactory,
    records: TaskRecords | None,
    open_workspace: OpensWorkspaces,
) -> Adopted:
    path = slot.directory
    try:
        recent = record.recent_tasks
        if records is not None:
            recent = tuple(records.recover(record.session_id, path)) or recent
        record = dataclasses.replace(
            record,
            incarnation=record.incarnation + 1,
            identity=slot.identity,
            recent_tasks=recent,
        )
        stored = record
        await to_end(lambda: session_store.save(path, stored, durable=True))
        # After the record names the owner: a start that is interrupted here does it again.
        await to_end(lambda: _give(slot))
        return Adopted(record, slot, open_workspace(slot))
    except BaseException:
        await factory.dismantle(slot)
        raise


def _give(slot: Slot) -> None:
    """Let the slot's identity own its files, if another had them."""
    if slot.identity is None or os.geteuid() != 0:
        return  # only root has identities to give files to
    for part in ("workspace", "venv"):
        path = slot.volume.root / part
        if path.lstat().st_uid != slot.identity.uid:
            chown_tree(path, slot.identity.uid, slot.identity.gid)


def _may_pass(error: Exception) -> bool:
    """Whether the host refused (rights, a busy device) rather than the files being damaged."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno not in _DAMAGE
