"""The directory in one SQLite file, for one coordinator."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from codegen_mcp.coordinator.directory import statements
from codegen_mcp.coordinator.directory.base import Commit, Owner, RowState, SessionRow
from codegen_mcp.coordinator.directory.checks import (
    check_new,
    exists_already,
    has_beaten,
    no_more_sessions,
)
from codegen_mcp.coordinator.directory.sqlite_thread import SqliteThread

_SEQUENCE_0 = -(2**63)
"""Sequence numbers have 64 bits and no sign; a BIGINT has one."""

_MAX = 2**63 - 1
"""Of a BIGINT. An epoch above it is nobody's, and is looked up as this one, which none reaches."""


class SqliteDirectory:
    """Implements ``Directory``; an async context manager.

    What was acknowledged is on the disk: it survives the end of this process, whatever that is.
    """

    def __init__(self, path: Path) -> None:
        self._thread = SqliteThread(path)

    async def __aenter__(self) -> Self:
        await self._thread.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._thread.__aexit__(kind, error, trace)

    async def register(self, worker_id: str, start_id: str) -> int:
        """Count up and lose what the earlier starts hold, in one transaction."""

        def step(database: sqlite3.Connection) -> int:
            facts: dict[str, Any] = {"worker_id": worker_id, "start_id": start_id}
            ((incarnation,),) = database.execute(statements.REGISTER, facts).fetchall()
            facts["incarnation"] = incarnation
            database.execute(statements.LOSE_EARLIER, facts)
            return int(incarnation)

        return await self._thread.run(step)

    async def beat(self, owner: Owner) -> bool:
        """One statement."""
        return await self._changed(statements.BEAT, _owner(owner))

    async def beats(self) -> Mapping[Owner, int]:
        """One statement."""

        def step(database: sqlite3.Connection) -> Mapping[Owner, int]:
            return {
                Owner(worker_id=worker_id, incarnation=incarnation): beats
                for worker_id, incarnation, beats in database.execute(statements.BEATS)
            }

        return await self._thread.run(step)

    async def declare_dead(
        self, owner: Owner, *, at_beat: int | None = None
    ) -> Sequence[SessionRow]:
        """End the start and lose what it holds, in one transaction."""

        def step(database: sqlite3.Connection) -> Sequence[SessionRow]:
            facts = {**_owner(owner), "at_beat": at_beat}
            database.execute(statements.DECLARE_DEAD, facts)
            if _lives(database, facts):
                raise has_beaten(owner)
            database.execute(statements.LOSE, facts)
            return [_row(found) for found in database.execute(statements.LOST, facts)]

        return await self._thread.run(step)

    async def reserve(self, row: SessionRow, *, max_sessions: int = 0) -> bool:
        """One statement; when it inserts nothing, the same transaction asks why."""
        check_new(row)
        assert row.owner is not None

        facts = {
            **_owner(row.owner),
            "session_id": row.session_id,
            "principal": row.principal,
            "checkpoint_id": row.checkpoint_id,
            "sequence": row.sequence + _SEQUENCE_0,
            "state": row.state.value,
            "auto_restore": row.auto_restore,
            "adhoc": row.adhoc,
            "store_id": row.store_id,
            "max_sessions": max_sessions,
        }

        def step(database: sqlite3.Connection) -> bool:
            if database.execute(statements.RESERVE, facts).rowcount == 1:
                return True
            if not _lives(database, facts):
                return False
            if database.execute(statements.GET, facts).fetchone() is not None:
                raise exists_already(row)
            raise no_more_sessions(row, max_sessions)

        return await self._thread.run(step)

    async def confirm(self, session_id: str, owner: Owner, epoch: int) -> bool:
        """One statement."""
        return await self._changed(statements.CONFIRM, _held(session_id, owner, epoch))

    async def acquire(
        self, session_id: str, owner: Owner, expected_epoch: int
    ) -> SessionRow | None:
        """One statement."""
        return await self._one(statements.ACQUIRE, _held(session_id, owner, expected_epoch))

    async def commit(self, owner: Owner, commits: Sequence[Commit]) -> Sequence[bool]:
        """One statement a session, all in one transaction."""

        def step(database: sqlite3.Connection) -> Sequence[bool]:
            return [
                database.execute(
                    statements.COMMIT,
                    {
                        **_held(one.session_id, owner, one.epoch),
                        "checkpoint_id": one.checkpoint_id,
                        "sequence": one.sequence + _SEQUENCE_0,
                    },
                ).rowcount
                == 1
                for one in commits
            ]

        return await self._thread.run(step)

    async def release(self, session_id: str, owner: Owner, epoch: int) -> bool:
        """One statement."""
        return await self._changed(statements.RELEASE, _held(session_id, owner, epoch))

    async def end(self, session_id: str, epoch: int) -> bool:
        """One statement."""
        facts = {"session_id": session_id, "epoch": min(epoch, _MAX)}
        return await self._changed(statements.END, facts)

    async def get(self, session_id: str) -> SessionRow | None:
        """One statement."""
        return await self._one(statements.GET, {"session_id": session_id})

    async def sessions(
        self,
        *,
        principal: str | None = None,
        owner: Owner | None = None,
        live_only: bool = True,
        after: str = "",
        limit: int = 500,
    ) -> Sequence[SessionRow]:
        """One statement."""
        text = statements.sessions(
            principal=principal is not None, owner=owner is not None, live_only=live_only
        )
        facts: dict[str, Any] = {"principal": principal, "after": after, "limit": limit}
        if owner is not None:
            facts |= _owner(owner)

        def step(database: sqlite3.Connection) -> Sequence[SessionRow]:
            return [_row(found) for found in database.execute(text, facts)]

        return await self._thread.run(step)

    async def forget(self, keep: int) -> int:
        """One statement."""

        def step(database: sqlite3.Connection) -> int:
            return database.execute(statements.FORGET, {"keep": keep}).rowcount

        return await self._thread.run(step)

    async def _changed(self, text: str, facts: Mapping[str, Any]) -> bool:
        return await self._thread.run(lambda database: database.execute(text, facts).rowcount == 1)

    async def _one(self, text: str, facts: Mapping[str, Any]) -> SessionRow | None:
        def step(database: sqlite3.Connection) -> SessionRow | None:
            # All of them: a statement is done, and commits, only when it was read to its end.
            found = database.execute(text, facts).fetchall()
            return _row(found[0]) if found else None

        return await self._thread.run(step)


def _owner(owner: Owner) -> dict[str, Any]:
    return {"worker_id": owner.worker_id, "incarnation": owner.incarnation}


def _held(session_id: str, owner: Owner, epoch: int) -> dict[str, Any]:
    return {**_owner(owner), "session_id": session_id, "epoch": min(epoch, _MAX)}


def _lives(database: sqlite3.Connection, facts: Mapping[str, Any]) -> bool:
    ((lives,),) = database.execute(statements.LIVES, facts).fetchall()
    return bool(lives)


def _row(found: Sequence[Any]) -> SessionRow:
    session_id, principal, worker_id, incarnation, epoch, checkpoint_id, sequence, state = found[:8]
    auto_restore, adhoc, store_id = found[8:]
    return SessionRow(
        session_id=session_id,
        principal=principal,
        owner=None if worker_id is None else Owner(worker_id=worker_id, incarnation=incarnation),
        epoch=epoch,
        checkpoint_id=checkpoint_id,
        sequence=sequence - _SEQUENCE_0,
        state=RowState(state),
        auto_restore=bool(auto_restore),
        adhoc=bool(adhoc),
        store_id=store_id,
    )
