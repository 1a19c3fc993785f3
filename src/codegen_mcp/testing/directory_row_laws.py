"""The laws of ``coordinator/directory/base.py`` about the rows of sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from codegen_mcp.coordinator.directory.base import Commit, RowState, SessionRow
from codegen_mcp.core.errors import AlreadyExists, Full, InvalidRequest
from codegen_mcp.testing.directory_rig import DirectoryRig, new_row

NAMES = ("plain", "'; DROP TABLE session; --", '"', "%", "ä\N{SNOWMAN}\U0001f600", "x" * 4096, " ")


async def a_session_is_reserved_once_and_as_it_was_given(rig: DirectoryRig) -> None:
    """Whatever its strings are; a second one of that id is refused, in every state."""
    owner = await rig.start()
    for number, name in enumerate(NAMES):
        row = replace(
            new_row(name, owner, principal=name, adhoc=bool(number % 2)),
            state=(RowState.CREATING, RowState.LIVE)[number % 2],
            checkpoint_id=name,
            auto_restore=bool(number % 3),
            sequence=number,
            store_id=name,
        )
        assert await rig.directory.reserve(row)
        assert await rig.row(name) == row
        assert [one async for one in _pages(rig, principal=name)] == [row]
        for again in (row, replace(row, principal="another")):
            await _raises(AlreadyExists, rig, again)
        assert await rig.directory.end(name, 1)
        await _raises(AlreadyExists, rig, row)
    assert await rig.directory.get("none") is None


async def what_is_no_new_session_is_refused(rig: DirectoryRig) -> None:
    """And leaves nothing."""
    row = new_row("s", await rig.start())
    for bad in (
        replace(row, session_id=""),
        replace(row, owner=None),
        replace(row, epoch=0),
        replace(row, epoch=2),
        replace(row, state=RowState.LOST),
        replace(row, state=RowState.ENDED),
    ):
        await _raises(InvalidRequest, rig, bad)
    assert await rig.directory.sessions(live_only=False) == []


async def a_confirmed_session_is_live(rig: DirectoryRig) -> None:
    """Once and again, for its owner and epoch alone."""
    owner, other = await rig.start(), await rig.start("other")
    assert await rig.directory.reserve(new_row("s", owner, state=RowState.CREATING))
    assert not await rig.directory.confirm("s", other, 1)
    assert not await rig.directory.confirm("s", owner, 2)
    assert not await rig.directory.confirm("none", owner, 1)
    assert (await rig.row("s")).state is RowState.CREATING
    assert await rig.directory.confirm("s", owner, 1)
    assert await rig.directory.confirm("s", owner, 1)
    assert (await rig.row("s")).state is RowState.LIVE
    assert await rig.directory.reserve(new_row("t", owner, state=RowState.CREATING))
    await rig.directory.declare_dead(owner)
    assert not await rig.directory.confirm("t", owner, 1)
    assert (await rig.row("t")).state is RowState.LOST


async def quotas_hold_under_races(rig: DirectoryRig) -> None:
    """Of many at once exactly those are made that may be; what ended makes room again."""
    owner = await rig.start()

    refusals: list[Full] = []

    async def reserve(number: int, *, principal: str = "p") -> bool:
        row = new_row(f"{principal}-{number}", owner, principal=principal)
        try:
            return await rig.directory.reserve(row, max_sessions=5)
        except Full as error:
            refusals.append(error)
            return False

    made = await asyncio.gather(*(reserve(number) for number in range(20)))
    assert made.count(True) == 5
    assert {error.reason for error in refusals} == {"QUOTA_EXCEEDED"}
    assert all(error.retry_after_s for error in refusals)
    assert await reserve(0, principal="q")
    assert await rig.directory.end(f"p-{made.index(True)}", 1)
    assert [await reserve(number) for number in (20, 21)] == [True, False]
    await rig.directory.declare_dead(owner)
    owner = await rig.start()
    assert not await reserve(22)
    assert await rig.directory.reserve(new_row("unbound", owner))


async def adhoc_sessions_count_as_one(rig: DirectoryRig) -> None:
    """However many there are; the first of them has to find room."""
    owner = await rig.start()

    async def reserve(name: str, *, adhoc: bool, most: int) -> bool:
        try:
            return await rig.directory.reserve(new_row(name, owner, adhoc=adhoc), max_sessions=most)
        except Full:
            return False

    assert await reserve("a", adhoc=False, most=1)
    assert not await reserve("b", adhoc=True, most=1)
    assert await reserve("b", adhoc=True, most=2)
    several = [reserve(f"b{number}", adhoc=True, most=2) for number in range(5)]
    assert all(await asyncio.gather(*several))
    assert not await reserve("c", adhoc=False, most=2)
    assert await reserve("c", adhoc=False, most=3)
    assert await rig.directory.end("b", 1)
    assert not await reserve("d", adhoc=False, most=3)


async def ended_stays_ended(rig: DirectoryRig) -> None:
    """For whoever comes with whatever; its last checkpoint is still known."""
    owner = await rig.start()
    await rig.hold("s", owner)
    directory = rig.directory
    commit = Commit(session_id="s", epoch=1, checkpoint_id="c")
    assert list(await directory.commit(owner, [commit])) == [True]
    assert not await directory.end("s", 2)
    assert not await directory.end("s", 0)
    assert not await directory.end("none", 1)
    assert (await rig.row("s")).state is RowState.LIVE
    for _ in range(2):
        assert await directory.end("s", 1)
        row = await rig.row("s")
        assert (row.state, row.owner, row.checkpoint_id) == (RowState.ENDED, None, "c")
        assert list(await directory.commit(owner, [commit])) == [False]
        assert not await directory.confirm("s", owner, 1)
        assert not await directory.release("s", owner, 1)
        assert await directory.acquire("s", owner, 1) is None
        await directory.declare_dead(owner)
        owner = await rig.start()
    assert await rig.row("s") == row


async def an_old_epoch_ends_nothing(rig: DirectoryRig) -> None:
    """What was taken over lives on under its new owner."""
    first, second = await rig.start("first"), await rig.start("second")
    await rig.hold("s", first)
    await rig.directory.declare_dead(first)
    assert await rig.directory.acquire("s", second, 1) is not None
    assert not await rig.directory.end("s", 1)
    assert (await rig.row("s")).state is RowState.LIVE
    assert await rig.directory.end("s", 2)


async def sessions_are_listed_by_id_in_pages(rig: DirectoryRig) -> None:
    """Of one principal, of one owner, with or without those that ended."""
    owners = [await rig.start("one"), await rig.start("two")]
    rows: list[SessionRow] = []
    for number, name in enumerate(["b", "a", "a-b", "A", "aa", "ä", "Z", "_", "10", "9", "a b"]):
        row = new_row(name, owners[number % 2], principal="pq"[number % 3 == 0])
        assert await rig.directory.reserve(row)
        rows.append(row)
    assert await rig.directory.end("a", 1)
    assert await rig.directory.release("aa", owners[0], 1)
    rows = sorted(
        [
            replace(row, owner=None)
            if row.session_id == "aa"
            else replace(row, owner=None, state=RowState.ENDED)
            if row.session_id == "a"
            else row
            for row in rows
        ],
        key=lambda row: row.session_id,
    )
    live = [row for row in rows if row.state is not RowState.ENDED]
    assert [row async for row in _pages(rig, live_only=False)] == rows
    assert [row async for row in _pages(rig)] == live
    for principal in ("p", "q", "r"):
        expected = [row for row in live if row.principal == principal]
        assert [row async for row in _pages(rig, principal=principal)] == expected
    mine = [row for row in live if row.owner == owners[1]]
    assert await rig.directory.sessions(owner=owners[1]) == mine
    both = [row for row in mine if row.principal == "p"]
    assert await rig.directory.sessions(owner=owners[1], principal="p") == both


async def only_ended_rows_are_forgotten_the_oldest_first(rig: DirectoryRig) -> None:
    """By when they ended, whatever their ids are."""
    owner = await rig.start()
    for name in ("a", "b", "c", "d", "e"):
        await rig.hold(name, owner)
    for name in ("d", "a", "c"):
        assert await rig.directory.end(name, 1)
    assert await rig.directory.end("d", 1)
    assert await rig.directory.forget(3) == 0
    assert await rig.directory.forget(2) == 1
    assert await rig.directory.get("d") is None
    assert await rig.directory.forget(1) == 1
    assert await rig.directory.get("a") is None
    assert await rig.directory.forget(0) == 1
    assert await rig.directory.forget(0) == 0
    left = await rig.directory.sessions(live_only=False)
    assert [row.session_id for row in left] == ["b", "e"]


async def all_that_was_acknowledged_is_there_after_a_restart(rig: DirectoryRig) -> None:
    """Rows, counters, the dead, and what the next incarnation is."""
    one, dead = await rig.start("one"), await rig.start("dead")
    for number, owner in enumerate((one, one, one, dead)):
        await rig.hold(f"s{number}", owner)
    await rig.directory.commit(one, [Commit(session_id="s0", epoch=1, checkpoint_id="c")])
    await rig.directory.release("s1", one, 1)
    await rig.directory.end("s2", 1)
    await rig.directory.beat(one)
    await rig.directory.declare_dead(dead)
    rows = await rig.directory.sessions(live_only=False)
    beats = await rig.directory.beats()
    await rig.reopen()
    assert await rig.directory.sessions(live_only=False) == rows
    assert await rig.directory.beats() == beats
    assert await rig.directory.register("one", "1") == 1
    assert await rig.directory.register("dead", "1") == 2
    commit = Commit(session_id="s0", epoch=1, checkpoint_id="d")
    assert list(await rig.directory.commit(one, [commit])) == [True]
    assert [row.session_id for row in await rig.directory.declare_dead(dead)] == ["s3"]


async def _raises(kind: type[Exception], rig: DirectoryRig, row: SessionRow) -> None:
    try:
        await rig.directory.reserve(row)
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised for {row}")


async def _pages(
    rig: DirectoryRig, *, principal: str | None = None, live_only: bool = True
) -> AsyncIterator[SessionRow]:
    after = ""
    while page := await rig.directory.sessions(
        principal=principal, live_only=live_only, after=after, limit=2
    ):
        assert len(page) <= 2
        for row in page:
            yield row
        after = page[-1].session_id
