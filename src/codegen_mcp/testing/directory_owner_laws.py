"""The laws of ``coordinator/directory/base.py`` about starts, takeovers and commits."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from codegen_mcp.coordinator.directory.base import Commit, Owner, RowState
from codegen_mcp.core.errors import Conflict
from codegen_mcp.testing.directory_rig import DirectoryRig, new_row


async def a_start_keeps_its_incarnation(rig: DirectoryRig) -> None:
    """However often it registers; another start of the same worker gets the next one."""
    directory = rig.directory
    assert [await directory.register("w", "1") for _ in range(3)] == [1, 1, 1]
    assert await directory.register("other", "1") == 1
    assert await directory.register("w", "2") == 2
    assert await directory.register("w", "2") == 2
    assert await directory.register("w", "1") == 3


async def of_starts_that_register_at_once_each_gets_its_own(rig: DirectoryRig) -> None:
    """No incarnation is given out twice, and the last one is the one that lives."""
    given = await asyncio.gather(*(rig.directory.register("w", str(n)) for n in range(8)))
    assert sorted(given) == list(range(1, 9))
    assert set(await rig.directory.beats()) == {Owner(worker_id="w", incarnation=8)}


async def beats_count_signs_of_life(rig: DirectoryRig) -> None:
    """Of the start that lives; each one changes the counter, nothing else does."""
    one, two = await rig.start("one"), await rig.start("two")
    directory = rig.directory
    before = await directory.beats()
    assert set(before) == {one, two}
    assert all(await asyncio.gather(*(directory.beat(one) for _ in range(5))))
    await rig.start("one")
    assert await directory.beats() == {one: before[one] + 5, two: before[two]}
    assert not await directory.beat(replace(one, incarnation=2))
    assert not await directory.beat(Owner(worker_id="nobody", incarnation=1))


async def a_start_that_has_beaten_since_is_not_declared_dead(rig: DirectoryRig) -> None:
    """Whoever decided by an older counter is told so, and nothing is lost."""
    owner = await rig.start()
    await rig.hold("s", owner)
    seen = (await rig.directory.beats())[owner]
    assert await rig.directory.beat(owner)
    try:
        await rig.directory.declare_dead(owner, at_beat=seen)
    except Conflict:
        pass
    else:
        raise AssertionError("declared dead in spite of its beat")
    assert await rig.directory.beat(owner)
    assert (await rig.row("s")).state is RowState.LIVE
    lost = await rig.directory.declare_dead(owner, at_beat=seen + 2)
    assert [row.session_id for row in lost] == ["s"]


async def the_dead_never_return(rig: DirectoryRig) -> None:
    """Whatever they do is refused; the same start that registers again is a new incarnation."""
    owner = await rig.start()
    row = await rig.hold("s", owner)
    await rig.hold("t", owner)
    directory = rig.directory
    lost = await directory.declare_dead(owner)
    assert lost == await directory.sessions(owner=owner)
    assert [(one.session_id, one.state) for one in lost] == [
        ("s", RowState.LOST),
        ("t", RowState.LOST),
    ]
    assert owner not in await directory.beats()

    async def refused() -> None:
        assert not await directory.beat(owner)
        commits = [Commit(session_id="s", epoch=1, checkpoint_id="late", sequence=9)]
        assert list(await directory.commit(owner, commits)) == [False]
        assert not await directory.confirm("s", owner, 1)
        assert not await directory.release("s", owner, 1)
        assert not await directory.reserve(new_row("late", owner))
        assert await directory.acquire("t", owner, 1) is None

    await refused()
    again = await rig.start()
    assert again == replace(owner, incarnation=2)
    await refused()
    assert await rig.row("s") == replace(row, state=RowState.LOST)
    assert await directory.get("late") is None


async def a_later_start_makes_those_before_it_dead(rig: DirectoryRig) -> None:
    """Their sessions are lost, and may be taken over, also by the later start."""
    first = await rig.start()
    await rig.hold("s", first)
    await rig.hold("t", first)
    second, other = await rig.start(start_id="2"), await rig.start("other")
    directory = rig.directory
    assert not await directory.beat(first)
    assert (await rig.row("s")).state is RowState.LOST
    taken = await directory.acquire("s", second, 1)
    assert taken is not None
    assert (taken.owner, taken.epoch) == (second, 2)
    assert [row.session_id for row in await directory.declare_dead(first)] == ["t"]
    assert await directory.acquire("t", other, 1) is not None
    assert await directory.declare_dead(first) == []
    assert await directory.beat(second)


async def only_what_nobody_live_holds_is_taken_over(rig: DirectoryRig) -> None:
    """Under the epoch that is expected, by an owner that lives."""
    holder, other = await rig.start("holder"), await rig.start("other")
    await rig.hold("s", holder)
    directory = rig.directory
    assert await directory.acquire("s", other, 1) is None
    assert await directory.acquire("s", holder, 1) is None
    assert await directory.acquire("none", other, 1) is None
    await directory.declare_dead(holder)
    assert await directory.acquire("s", replace(other, incarnation=2), 1) is None
    assert await directory.acquire("s", other, 2) is None
    assert await directory.acquire("s", other, 0) is None
    taken = await directory.acquire("s", other, 1)
    assert taken == await rig.row("s")
    assert taken is not None
    assert (taken.owner, taken.epoch, taken.state) == (other, 2, RowState.LIVE)
    assert await directory.acquire("s", other, 1) is None


async def of_many_who_take_over_one_wins(rig: DirectoryRig) -> None:
    """At once; nobody else ever has that epoch."""
    holder = await rig.start()
    others = [await rig.start(f"other-{n}") for n in range(8)]
    await rig.hold("s", holder)
    await rig.directory.declare_dead(holder)
    found = await asyncio.gather(*(rig.directory.acquire("s", other, 1) for other in others))
    won = [row for row in found if row is not None]
    assert won == [await rig.row("s")]
    assert won[0].epoch == 2


async def a_takeover_brings_what_was_committed_until_then(rig: DirectoryRig) -> None:
    """Also what was committed just before, while the takeover was on its way."""
    other = await rig.start("other")
    for number in range(20):
        holder = await rig.start("holder", str(number))
        session_id = f"s{number}"
        await rig.hold(session_id, holder)
        commit = Commit(session_id=session_id, epoch=1, checkpoint_id=f"c{number}", sequence=3)
        taken, committed, lost, taken_later = await asyncio.gather(
            rig.directory.acquire(session_id, other, 1),
            rig.directory.commit(holder, [commit]),
            rig.directory.declare_dead(holder),
            rig.directory.acquire(session_id, other, 1),
        )
        found = taken or taken_later or await rig.directory.acquire(session_id, other, 1)
        assert found is not None
        assert (list(committed), found.checkpoint_id, found.sequence) in (
            ([True], commit.checkpoint_id, 3),
            ([False], "", 0),
        )
        assert all(row.state is RowState.LOST for row in lost)


async def a_released_session_belongs_to_nobody(rig: DirectoryRig) -> None:
    """Its last holder is fenced; the next one gets the next epoch and the last commit."""
    owner, other = await rig.start(), await rig.start("other")
    await rig.hold("s", owner)
    directory = rig.directory
    assert not await directory.release("s", other, 1)
    assert not await directory.release("s", owner, 2)
    last = Commit(session_id="s", epoch=1, checkpoint_id="c", sequence=7)
    assert list(await directory.commit(owner, [last])) == [True]
    assert await directory.release("s", owner, 1)
    assert (await rig.row("s")).owner is None
    assert not await directory.release("s", owner, 1)
    assert list(await directory.commit(owner, [last])) == [False]
    taken = await directory.acquire("s", owner, 1)
    assert taken is not None
    assert (taken.epoch, taken.checkpoint_id, taken.sequence) == (2, "c", 7)
    assert list(await directory.commit(owner, [last])) == [False]


async def commits_move_what_they_name_and_nothing_backwards(rig: DirectoryRig) -> None:
    """An empty checkpoint stays, and so does the highest sequence, up to 64 bits."""
    owner = await rig.start()
    await rig.hold("s", owner)

    async def commit(checkpoint_id: str, sequence: int) -> tuple[str, int]:
        one = Commit(session_id="s", epoch=1, checkpoint_id=checkpoint_id, sequence=sequence)
        assert list(await rig.directory.commit(owner, [one])) == [True]
        row = await rig.row("s")
        return row.checkpoint_id, row.sequence

    assert await commit("", 0) == ("", 0)
    assert await commit("a", 0) == ("a", 0)
    assert await commit("", 5) == ("a", 5)
    assert await commit("b", 3) == ("b", 5)
    assert await commit("a", 2**64 - 1) == ("a", 2**64 - 1)
    assert await commit("", 6) == ("a", 2**64 - 1)


async def each_commit_of_a_batch_is_judged_for_itself(rig: DirectoryRig) -> None:
    """Fenced ones change nothing, and hold up nobody."""
    owner, other = await rig.start(), await rig.start("other")
    for session_id in ("a", "b", "c"):
        await rig.hold(session_id, owner)
    await rig.hold("theirs", other)
    await rig.directory.release("b", owner, 1)
    await rig.directory.end("c", 1)
    epochs = (("a", 1), ("b", 1), ("c", 1), ("theirs", 1), ("none", 1), ("a", 0), ("a", 2))
    commits = [
        *(Commit(session_id=name, epoch=epoch, checkpoint_id="x") for name, epoch in epochs),
        Commit(session_id="a", epoch=2**64 - 1, checkpoint_id="x"),
        Commit(session_id="a", epoch=1, checkpoint_id="y"),
    ]
    assert list(await rig.directory.commit(owner, commits)) == [True, *[False] * 7, True]
    assert list(await rig.directory.commit(owner, [])) == []
    ids = {row.session_id: row.checkpoint_id for row in await rig.directory.sessions()}
    assert ids == {"a": "y", "b": "", "theirs": ""}
