"""Lives of a coordinator's directory that end by SIGKILL, and the judge of what they leave.

``python -m codegen_mcp.testing.directory_lives FILE [during|after NUMBER]`` opens the SQLite file
and does one thing after another in several sessions at once, with a line on standard output before
each (``asked``) and one after (``acked``), until it is killed; with the further arguments it kills
itself before its n-th statement, or after the first transaction from the n-th on that moves a
session on, when nobody was told yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codegen_mcp.coordinator.directory import sqlite_thread
from codegen_mcp.coordinator.directory.base import Commit, Directory, Owner, SessionRow
from codegen_mcp.coordinator.directory.sqlite import SqliteDirectory
from codegen_mcp.coordinator.directory.sqlite_file import open_file
from codegen_mcp.coordinator.directory.sqlite_thread import SqliteThread
from codegen_mcp.testing.directory_rig import new_row

SESSIONS = 8
COMMITS = 5
"""In one epoch, before the session is given up and taken over."""

TOGETHER = ("t0", "t1", "t2", "t3")
"""Sessions whose commits are asked for in one call."""


def _say(what: str, **facts: Any) -> None:
    """One write, so that no line is torn but the last."""
    os.write(1, json.dumps({"what": what, **facts}).encode() + b"\n")


async def _live(path: Path) -> None:
    async with SqliteDirectory(path) as directory:
        start_id = os.urandom(8).hex()
        incarnation = await directory.register("w", start_id)
        _say("registered", incarnation=incarnation)
        owner = Owner(worker_id="w", incarnation=incarnation)
        async with asyncio.TaskGroup() as group:
            for number in range(SESSIONS):
                group.create_task(_session(directory, owner, f"s{number}"))
            group.create_task(_together(directory, owner))


async def _session(directory: Directory, owner: Owner, session_id: str) -> None:
    row = await directory.get(session_id)
    if row is None:
        row = new_row(session_id, owner)
        assert await directory.reserve(row)
    elif row.owner != owner:
        row = await _take(directory, owner, row)
    while True:
        for _ in range(COMMITS):
            number = row.sequence + 1
            facts = {"session": session_id, "epoch": row.epoch, "number": number}
            _say("asked", **facts)
            commit = Commit(
                session_id=session_id,
                epoch=row.epoch,
                checkpoint_id=f"c{number}",
                sequence=number,
            )
            assert list(await directory.commit(owner, [commit])) == [True]
            _say("acked", **facts)
            found = await directory.get(session_id)
            assert found is not None
            row = found
        assert await directory.release(session_id, owner, row.epoch)
        row = await _take(directory, owner, row)


async def _together(directory: Directory, owner: Owner) -> None:
    rows = []
    for session_id in TOGETHER:
        row = await directory.get(session_id) or new_row(session_id, owner)
        if row.owner != owner:
            row = await _take(directory, owner, row)
        elif not row.sequence:
            await directory.reserve(row)
        rows.append(row)
    while True:
        number = rows[0].sequence + 1
        commits = [
            Commit(
                session_id=row.session_id,
                epoch=row.epoch,
                checkpoint_id=f"c{number}",
                sequence=number,
            )
            for row in rows
        ]
        for row in rows:
            _say("asked", session=row.session_id, epoch=row.epoch, number=number)
        assert all(await directory.commit(owner, commits))
        for row in rows:
            _say("acked", session=row.session_id, epoch=row.epoch, number=number)
        rows = [replace(row, sequence=number) for row in rows]


async def _take(directory: Directory, owner: Owner, row: SessionRow) -> SessionRow:
    facts = {"session": row.session_id, "epoch": row.epoch + 1, "number": row.sequence}
    _say("asked", **facts)
    taken = await directory.acquire(row.session_id, owner, row.epoch)
    assert taken is not None
    _say("acked", **facts)
    return taken


@dataclass(slots=True)
class Judge:
    """Over all lives of one file."""

    incarnation: int = 0
    acked: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Epoch and number, by session."""
    asked: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    """What may have happened after that."""

    def hear(self, lines: Iterable[bytes]) -> None:
        """All that a life said."""
        for line in lines:
            if not line.endswith(b"\n"):
                continue
            match json.loads(line):
                case {"what": "registered", "incarnation": int(incarnation)}:
                    assert incarnation > self.incarnation, "an incarnation was given out twice"
                    self.incarnation = incarnation
                case {"what": what, "session": str(session), "epoch": epoch, "number": number}:
                    if what == "asked":
                        self.asked.setdefault(session, set()).add((epoch, number))
                    else:
                        self.acked[session] = (epoch, number)
                        self.asked[session] = set()

    def see(self, rows: Sequence[SessionRow]) -> None:
        """What is there after it: what was acknowledged, or one step more, and whole."""
        found = {row.session_id: (row.epoch, row.sequence) for row in rows}
        for row in rows:
            assert row.checkpoint_id == (f"c{row.sequence}" if row.sequence else ""), row
        for session, acked in self.acked.items():
            allowed = {acked, *self.asked[session]}
            assert found[session] in allowed, f"{session}: {found[session]} is not in {allowed}"
            self.acked[session], self.asked[session] = found[session], set()
        together = {row.sequence for row in rows if row.session_id in TOGETHER}
        assert len(together) <= 1, f"a call was done in part: {together}"


def _die_at(moment: str, number: int) -> None:
    """Have the n-th statement, or whoever told of the n-th transaction, kill this process."""
    statements = transactions = 0

    @contextlib.contextmanager
    def opened(path: Path) -> Iterator[sqlite3.Connection]:
        with open_file(path) as connection:

            def traced(statement: str) -> None:
                nonlocal statements, transactions
                statements += 1
                transactions += statement == "COMMIT"
                if moment == "during" and statements == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            connection.set_trace_callback(traced)
            yield connection

    transact = SqliteThread._transact

    def begun(connection: sqlite3.Connection) -> dict[str, tuple[int, int]]:
        rows = connection.execute("SELECT session_id, epoch, sequence FROM session")
        return {name: (epoch, sequence) for name, epoch, sequence in rows if sequence}

    def transacted(thread: SqliteThread, connection: sqlite3.Connection, jobs: Any) -> Any:
        before = begun(connection)
        answers = transact(thread, connection, jobs)
        after = begun(connection)
        moved = any(after[name] != was for name, was in before.items())
        if moment == "after" and transactions >= number and moved:
            os.kill(os.getpid(), signal.SIGKILL)
        return answers

    setattr(sqlite_thread, "open_file", opened)  # noqa: B010
    setattr(SqliteThread, "_transact", transacted)  # noqa: B010


if __name__ == "__main__":
    if sys.argv[2:]:
        _die_at(sys.argv[2], int(sys.argv[3]))
    asyncio.run(_live(Path(sys.argv[1])))
