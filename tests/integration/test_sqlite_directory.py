"""The directory's SQLite file: who may open it, which formats are read, what a fault does."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.coordinator.directory import sqlite_file, sqlite_thread, statements
from codegen_mcp.coordinator.directory.base import Commit, Owner, RowState
from codegen_mcp.coordinator.directory.registry import open_directory
from codegen_mcp.coordinator.directory.schema import MIGRATIONS
from codegen_mcp.coordinator.directory.sqlite import SqliteDirectory
from codegen_mcp.core.errors import (
    Corrupt,
    InvalidRequest,
    StoreUnavailable,
    Unavailable,
    WrongState,
)
from codegen_mcp.testing.directory_rig import new_row

GOLDEN = Path(__file__).parents[1] / "golden" / "directory_format_1.sql"
FULL = "PRAGMA max_page_count = {}"
OWNER = Owner(worker_id="w", incarnation=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "below" / "directory.sqlite"


async def fill(path: Path, number: int = 1) -> None:
    async with SqliteDirectory(path) as directory:
        await directory.register("w", "1")
        for session in range(number):
            await directory.reserve(new_row(f"s{session}", OWNER))


async def test_one_coordinator_at_a_time_has_it(path: Path) -> None:
    async with SqliteDirectory(path):
        with pytest.raises(Unavailable, match="another coordinator") as refused:
            async with SqliteDirectory(path):
                pass
        assert refused.value.reason == "DIRECTORY_LOCKED"
    async with SqliteDirectory(path) as directory:
        assert await directory.beats() == {}


async def test_nobody_else_can_read_whose_sessions_there_are(path: Path) -> None:
    async with SqliteDirectory(path) as directory:
        await directory.register("w", "1")
        for file in [path, *path.parent.glob("directory.sqlite-*"), path.parent]:
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


async def test_a_newer_format_is_refused_by_name(path: Path) -> None:
    await fill(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE directory SET format = 99")
    with pytest.raises(WrongState, match="format 99, newer than") as refused:
        await fill(path)
    assert refused.value.reason == "FORMAT_TOO_NEW"


async def test_a_database_of_something_else_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE cats (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(WrongState, match="something else"):
        await fill(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT name FROM sqlite_schema").fetchall() == [("cats",)]
    assert len(path.read_bytes()) == len(before)


@pytest.mark.parametrize("damage", ["overwritten", "not a database", "cut"])
async def test_a_damaged_file_is_refused_and_says_what_to_do(path: Path, damage: str) -> None:
    await fill(path, 500)
    content = bytearray(path.read_bytes())
    if damage == "overwritten":
        content[4096 : 4096 * 4] = b"\xff" * (4096 * 3)
    elif damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[:100] = b"x" * 100
    path.write_bytes(content)
    with pytest.raises(Corrupt, match="move it away"):
        await fill(path)


async def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await fill(tmp_path)


async def test_the_oldest_format_is_read(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(GOLDEN.read_text())
    async with SqliteDirectory(path) as directory:
        rows = {row.session_id: row for row in await directory.sessions(live_only=False)}
        assert {name: row.state.value for name, row in rows.items()} == {
            "creating": "creating",
            "ended": "ended",
            "live": "live",
            "lost": "lost",
            "released": "live",
        }
        assert rows["live"] == replace(
            new_row("live", Owner(worker_id="two", incarnation=1), principal="q", adhoc=True),
            checkpoint_id="c",
            sequence=2**64 - 1,
        )
        assert rows["released"].owner is None
        assert await directory.register("one", "1") == 2
        taken = await directory.acquire("lost", Owner(worker_id="two", incarnation=1), 1)
        assert taken is not None
        assert taken.epoch == 2


async def test_each_format_becomes_the_next_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "directory.sqlite"
    last = len(MIGRATIONS) + 1
    longer = [
        *MIGRATIONS,
        ("ALTER TABLE session ADD COLUMN more TEXT", f"UPDATE directory SET format = {last}"),
    ]
    await fill(path)
    broken = [*longer, ("ALTER TABLE session ADD COLUMN most TEXT", "no SQL")]
    with pytest.raises(StoreUnavailable), sqlite_file.open_file(path, migrations=broken):
        pass
    async with SqliteDirectory(path) as directory:
        assert await directory.get("s0") is not None
    with sqlite_file.open_file(path, migrations=longer) as database:
        assert database.execute("SELECT session_id, more FROM session").fetchall() == [("s0", None)]
    with pytest.raises(WrongState, match=f"format {last}"):
        await fill(path)


async def test_a_full_disk_refuses_and_forgets_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused had no effect, what was there stays; with room it goes on."""

    @contextlib.contextmanager
    def opened(path: Path) -> Iterator[sqlite3.Connection]:
        with sqlite_file.open_file(path) as connection:
            connection.execute(FULL.format(40))
            yield connection

    monkeypatch.setattr(sqlite_thread, "open_file", opened)
    async with SqliteDirectory(path) as directory:
        await directory.register("w", "1")
        answers = await asyncio.gather(
            *(directory.reserve(new_row(f"s{n:05}" + "x" * 900, OWNER)) for n in range(2000)),
            return_exceptions=True,
        )
        made = [n for n, answer in enumerate(answers) if answer is True]
        assert {type(answer) for answer in answers} == {bool, StoreUnavailable}
        rows = await directory.sessions(limit=5000)
        assert [int(row.session_id[1:6]) for row in rows] == made
        commit = Commit(session_id=rows[0].session_id, epoch=1, checkpoint_id="c")
        await directory._thread.run(lambda database: database.execute(FULL.format(80)).fetchall())
        assert await directory.end(rows[-1].session_id, 1)
        assert await directory.forget(0) == 1
        assert await directory.commit(OWNER, [commit]) == [True]
    async with SqliteDirectory(path) as directory:
        assert len(await directory.sessions(limit=5000)) == len(made) - 1
        assert (await directory.sessions())[0].checkpoint_id == "c"


async def test_a_caller_that_is_cancelled_does_not_undo_its_step(path: Path) -> None:
    async with SqliteDirectory(path) as directory:
        await directory.register("w", "1")
        calls = [asyncio.create_task(directory.reserve(new_row("s", OWNER)))]
        await asyncio.sleep(0)
        calls[0].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        row = await directory.get("s")
        assert row is not None
        assert row.state is RowState.LIVE


async def test_what_was_asked_before_the_end_is_done_and_later_calls_are_refused(
    path: Path,
) -> None:
    async with SqliteDirectory(path) as directory:
        await directory.register("w", "1")
        calls = [asyncio.create_task(directory.beat(OWNER)) for _ in range(500)]
        await asyncio.sleep(0)
    assert all(await asyncio.gather(*calls))
    with pytest.raises(StoreUnavailable, match="is closed"):
        await directory.beats()
    async with SqliteDirectory(path) as directory:
        assert await directory.beats() == {OWNER: 500}


@pytest.mark.parametrize(
    "url",
    ["", "relative/path", "postgres://user:secret@host/name", "sqlite://host/path", "sqlite:"],
)
def test_an_address_that_names_no_directory_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        open_directory(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        statements.RESERVE,
        statements.END,
        statements.FORGET,
        statements.LOST,
        statements.sessions(principal=True, owner=False, live_only=True),
        statements.sessions(principal=False, owner=True, live_only=True),
        statements.sessions(principal=False, owner=False, live_only=True),
    ],
)
async def test_no_statement_reads_all_that_ever_was(path: Path, text: str) -> None:
    """Ended sessions are kept in great number; each lookup has an index without them."""
    with sqlite_file.open_file(path) as database:
        facts = defaultdict(int, principal="p", session_id="s", worker_id="w", after="")
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {text}", facts)]
    searches = [step for step in plan if "session" in step or "worker" in step]
    assert searches
    for step in searches:
        assert "INDEX" in step, plan
        assert "session_principal" not in step, plan
