"""The live view of workers: who is here, who was lost, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import pytest

from codegen_mcp.coordinator.directory.base import Commit, Owner, RowState, SessionRow
from codegen_mcp.coordinator.directory.memory import MemoryDirectory
from codegen_mcp.coordinator.worker_view import Load, Registration, Worker
from codegen_mcp.coordinator.workers import Cause, Lost, Workers, WorkersConfig
from codegen_mcp.core.errors import (
    AlreadyExists,
    InvalidRequest,
    StoreUnavailable,
    Unavailable,
)
from codegen_mcp.testing.directory_rig import new_row
from codegen_mcp.testing.manual_clock import ManualClock
from codegen_mcp.testing.workers_rig import SilentLink

CONFIG = WorkersConfig()
LOST_AFTER_S = CONFIG.lost_after_s


class Rig:
    """A coordinator's view on a directory and a clock that the test moves."""

    def __init__(
        self, directory: MemoryDirectory | None = None, clock: ManualClock | None = None
    ) -> None:
        self.directory = directory or MemoryDirectory()
        self.clock = clock or ManualClock()
        self.workers = Workers(self.directory, CONFIG, clock=self.clock)
        self.lost: asyncio.Queue[Lost] = asyncio.Queue()
        self.workers.on_lost(self.lost.put)

    async def __aenter__(self) -> Rig:
        await self.workers.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.workers.__aexit__(None, None, None)

    async def start(
        self, name: str = "w", start_id: str = "1", *sessions: str
    ) -> tuple[Worker, SilentLink]:
        """A worker that is registered, linked and has these sessions."""
        worker = await self.workers.register(Registration(worker_id=name, start_id=start_id))
        link = SilentLink(worker.owner)
        await self.workers.attach(worker.owner, link)
        for session in sessions:
            assert await self.directory.reserve(new_row(session, worker.owner))
        return worker, link

    async def passes(self, seconds: float, *beating: Owner) -> None:
        """Let time pass, with an observer that looks each second and workers that beat."""
        for _ in range(int(seconds)):
            self.clock.advance(1)
            for owner in beating:
                await self.workers.beat(owner)
            await self.workers.look()

    async def told(self) -> Lost:
        """The next start that is told as lost."""
        async with asyncio.timeout(10):
            return await self.lost.get()


# ---- silence


async def test_a_worker_that_beats_stays_and_one_that_does_not_is_lost() -> None:
    async with Rig() as rig:
        one, one_link = await rig.start("one", "1", "s", "t")
        two, two_link = await rig.start("two", "1", "u")
        await rig.workers.look()
        await rig.passes(LOST_AFTER_S - 1, two.owner)
        assert rig.lost.empty()
        await rig.passes(1, two.owner)
        lost = await rig.told()
        assert (lost.owner, lost.cause) == (one.owner, Cause.SILENT)
        assert [(row.session_id, row.state) for row in lost.sessions] == [
            ("s", RowState.LOST),
            ("t", RowState.LOST),
        ]
        assert (one_link.closed, two_link.closed) == (1, 0)
        assert rig.workers.all() == [two]
        await rig.passes(60, two.owner)
        assert rig.lost.empty()


async def test_its_link_is_closed_before_anybody_is_told() -> None:
    """So that nothing late gets through while its sessions are restored elsewhere."""
    async with Rig() as rig:
        _, link = await rig.start()
        closed_first = asyncio.get_running_loop().create_future()

        async def listen(lost: Lost) -> None:
            closed_first.set_result(link.closed)

        rig.workers.on_lost(listen)
        await rig.workers.look()
        await rig.passes(LOST_AFTER_S)
        assert await closed_first == 1


async def test_a_late_heartbeat_of_a_lost_worker_is_refused() -> None:
    """It has to register again, is another incarnation, and can commit nothing under the old."""
    async with Rig() as rig:
        worker, _ = await rig.start("w", "1", "s")
        await rig.workers.look()
        await rig.passes(LOST_AFTER_S)
        await rig.told()
        assert not await rig.workers.beat(worker.owner, Load(total=9, active=0))
        assert rig.workers.find(worker.owner) is None
        again, _ = await rig.start("w", "1")
        assert again.owner.incarnation == 2
        commit = Commit(session_id="s", epoch=1, checkpoint_id="late")
        assert await rig.directory.commit(worker.owner, [commit]) == [False]
        assert not await rig.workers.beat(worker.owner)
        assert await rig.workers.beat(again.owner)


async def test_an_observer_that_was_held_up_holds_it_against_nobody() -> None:
    """It was stopped, or its machine slept, for much longer than the workers may be silent."""
    async with Rig() as rig:
        worker, _ = await rig.start()
        for _ in range(3):
            await rig.workers.look()
            rig.clock.advance(LOST_AFTER_S * 100)
        await rig.workers.look()
        await rig.passes(LOST_AFTER_S - 1)
        assert rig.workers.find(worker.owner) is worker
        await rig.passes(1)
        assert (await rig.told()).owner == worker.owner


@pytest.mark.parametrize("step_s", [3600, -3600])
async def test_a_step_of_the_wall_clock_changes_nothing(step_s: int) -> None:
    async with Rig() as rig:
        worker, _ = await rig.start()
        await rig.workers.look()
        await rig.passes(LOST_AFTER_S / 2)
        rig.clock._unix_ms += step_s * 1000
        await rig.passes(LOST_AFTER_S / 2 - 1)
        assert rig.workers.find(worker.owner) is worker
        await rig.passes(1)
        assert (await rig.told()).owner == worker.owner


class Failing(MemoryDirectory):
    """Does not answer while ``down``."""

    down = False

    async def beats(self) -> Mapping[Owner, int]:
        self._check()
        return await super().beats()

    async def beat(self, owner: Owner) -> bool:
        self._check()
        return await super().beat(owner)

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("down")


async def test_a_directory_that_does_not_answer_loses_no_worker() -> None:
    """Its beats could not be counted then; that is no silence of theirs."""
    directory = Failing()
    async with Rig(directory) as rig:
        worker, _ = await rig.start()
        await rig.workers.look()
        directory.down = True
        for _ in range(60):
            rig.clock.advance(1)
            with pytest.raises(StoreUnavailable):
                await rig.workers.beat(worker.owner)
            with pytest.raises(StoreUnavailable):
                await rig.workers.look()
        directory.down = False
        await rig.workers.look()
        await rig.passes(LOST_AFTER_S - 1)
        assert rig.lost.empty()
        await rig.passes(60, worker.owner)
        assert rig.workers.find(worker.owner) is worker


async def test_beats_that_cannot_be_counted_while_reading_works_lose_nobody() -> None:
    """As with a full disk."""
    directory = Failing()
    async with Rig(directory) as rig:
        worker, _ = await rig.start()
        for _ in range(60):
            rig.clock.advance(1)
            directory.down = True
            with pytest.raises(StoreUnavailable):
                await rig.workers.beat(worker.owner)
            directory.down = False
            await rig.workers.look()
        assert rig.workers.find(worker.owner) is worker


class BeatsInBetween(MemoryDirectory):
    """A beat arrives just after the observer has decided."""

    async def declare_dead(
        self, owner: Owner, *, at_beat: int | None = None
    ) -> Sequence[SessionRow]:
        await self.beat(owner)
        return await super().declare_dead(owner, at_beat=at_beat)


async def test_a_beat_in_the_last_moment_counts() -> None:
    async with Rig(BeatsInBetween()) as rig:
        worker, link = await rig.start()
        await rig.workers.look()
        await rig.passes(LOST_AFTER_S * 3)
        assert rig.lost.empty()
        assert rig.workers.find(worker.owner) is worker
        assert link.closed == 0


# ---- starts


async def test_the_same_start_keeps_its_incarnation_link_and_load() -> None:
    async with Rig() as rig:
        worker, link = await rig.start()
        await rig.workers.beat(worker.owner, Load(total=5, active=3))
        again = await rig.workers.register(
            Registration(worker_id="w", start_id="1", version="newer")
        )
        assert again is worker
        assert (again.link, again.occupied, link.closed) == (link, 3, 0)
        assert again.registration.version == "newer"
        assert rig.lost.empty()


async def test_a_later_start_replaces_the_one_before_and_may_take_back_its_sessions_first() -> None:
    async with Rig() as rig:
        before, link = await rig.start("w", "1", "kept", "gone")
        after = await rig.workers.register(Registration(worker_id="w", start_id="2"))
        assert link.closed == 1
        assert rig.workers.find(before.owner) is None
        assert rig.workers.named("w") is after
        assert not await rig.workers.beat(before.owner)
        assert await rig.directory.acquire("kept", after.owner, 1) is not None
        assert rig.lost.empty()
        await rig.workers.attach(after.owner, SilentLink(after.owner))
        lost = await rig.told()
        assert (lost.owner, lost.cause) == (before.owner, Cause.REPLACED)
        assert [row.session_id for row in lost.sessions] == ["gone"]
        await rig.workers.attach(after.owner, SilentLink(after.owner))
        await rig.passes(3, after.owner)
        assert rig.lost.empty(), "it is told once"


async def test_a_start_that_was_replaced_is_refused_while_the_other_lives() -> None:
    """Two workers with one id would else take turns for ever."""
    async with Rig() as rig:
        await rig.start("w", "1")
        second, link = await rig.start("w", "2")
        with pytest.raises(AlreadyExists, match="id of its own"):
            await rig.start("w", "1")
        assert rig.workers.named("w") is second
        assert link.closed == 0
        await rig.workers.drop(second.owner)
        first, _ = await rig.start("w", "1")
        assert first.owner.incarnation == 3


async def test_a_worker_that_does_not_name_its_start_is_a_new_one_each_time() -> None:
    async with Rig() as rig:
        incarnations = [
            (await rig.workers.register(Registration(worker_id="w"))).owner.incarnation
            for _ in range(3)
        ]
        assert incarnations == [1, 2, 3]
        with pytest.raises(InvalidRequest, match="empty worker_id"):
            await rig.workers.register(Registration(worker_id=""))


async def test_a_worker_that_leaves_is_lost_at_once() -> None:
    async with Rig() as rig:
        worker, link = await rig.start("w", "1", "s")
        await rig.workers.drop(worker.owner)
        await rig.workers.drop(worker.owner)
        lost = await rig.told()
        assert (lost.cause, [row.session_id for row in lost.sessions]) == (Cause.LEFT, ["s"])
        assert link.closed == 1
        assert not await rig.workers.beat(worker.owner)


# ---- several coordinators, and a restart


async def test_what_another_coordinator_declared_dead_is_lost_here_as_well() -> None:
    directory, clock = MemoryDirectory(), ManualClock()
    async with Rig(directory, clock) as here, Rig(directory, clock) as there:
        worker, link = await here.start("w", "1", "s")
        await here.workers.look()
        await there.workers.drop(worker.owner)
        await here.workers.look()
        lost = await here.told()
        assert (lost.owner, lost.cause) == (worker.owner, Cause.DECLARED)
        assert link.closed == 1
        again, _ = await here.start("w", "1")
        await there.workers.drop(again.owner)
        assert not await here.workers.beat(again.owner)
        causes = {(await here.told()).cause, (await here.told()).cause}
        assert causes == {Cause.REPLACED, Cause.DECLARED}


async def test_a_beat_at_any_coordinator_is_heard_by_all() -> None:
    directory, clock = MemoryDirectory(), ManualClock()
    async with Rig(directory, clock) as here, Rig(directory, clock) as there:
        worker, _ = await here.start()
        for _ in range(60):
            await here.passes(1, worker.owner)
            await there.workers.look()
        assert here.lost.empty()
        assert there.lost.empty()


async def test_a_restarted_coordinator_takes_workers_back_as_they_were() -> None:
    directory, clock = MemoryDirectory(), ManualClock()
    async with Rig(directory, clock) as rig:
        worker, _ = await rig.start("w", "1", "s")
    async with Rig(directory, clock) as rig:
        assert rig.workers.all() == []
        again, _ = await rig.start("w", "1")
        assert again.owner == worker.owner
        await rig.passes(30, again.owner)
        assert rig.lost.empty()
        row = await directory.get("s")
        assert row is not None
        assert row.state is RowState.LIVE


async def test_a_worker_that_never_comes_back_to_a_restarted_coordinator_is_lost() -> None:
    directory, clock = MemoryDirectory(), ManualClock()
    async with Rig(directory, clock) as rig:
        worker, _ = await rig.start("w", "1", "s")
    async with Rig(directory, clock) as rig:
        await rig.workers.look()
        await rig.passes(LOST_AFTER_S)
        lost = await rig.told()
        assert (lost.owner, [row.session_id for row in lost.sessions]) == (worker.owner, ["s"])


# ---- links


async def test_a_call_waits_for_the_link_of_a_start_that_is_alive() -> None:
    directory = MemoryDirectory()
    async with Rig(directory) as rig:
        worker, _ = await rig.start("w", "1")
    async with Rig(directory) as rig:
        waiting = asyncio.create_task(rig.workers.reach(worker.owner))
        await asyncio.sleep(0)
        _, link = await rig.start("w", "1")
        assert await waiting is link
        await rig.workers.detach(worker.owner, link)
        assert link.closed == 1
        waiting = asyncio.create_task(rig.workers.reach(worker.owner))
        await asyncio.sleep(0)
        _, link = await rig.start("w", "1")
        assert await waiting is link


async def test_a_call_that_waits_for_a_link_ends_when_its_start_is_lost() -> None:
    async with Rig() as rig:
        worker, link = await rig.start()
        await rig.workers.detach(worker.owner, link)
        waiting = asyncio.create_task(rig.workers.reach(worker.owner))
        await rig.workers.look()
        await rig.passes(LOST_AFTER_S)
        with pytest.raises(Unavailable, match="is lost") as refused:
            async with asyncio.timeout(10):
                await waiting
        assert refused.value.reason == "WORKER_LOST"
        with pytest.raises(Unavailable):
            await rig.workers.reach(Owner(worker_id="nobody", incarnation=1))


async def test_a_new_link_replaces_the_one_before_and_an_old_one_ends_nothing() -> None:
    async with Rig() as rig:
        worker, first = await rig.start()
        _, second = await rig.start()
        assert (first.closed, second.closed) == (1, 0)
        await rig.workers.detach(worker.owner, first)
        assert worker.link is second


async def test_a_link_of_a_start_that_is_gone_is_closed() -> None:
    async with Rig() as rig:
        worker, _ = await rig.start()
        await rig.workers.drop(worker.owner)
        late = SilentLink(worker.owner)
        with pytest.raises(Unavailable, match="is lost"):
            await rig.workers.attach(worker.owner, late)
        assert late.closed == 1


async def test_links_that_fail_and_hang_do_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("codegen_mcp.coordinator.workers.CLOSE_S", 0.01)

    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    async def fail() -> None:
        raise OSError("broken")

    async with Rig() as rig:
        ends: Sequence[Callable[[], Awaitable[None]]] = (hang, fail)
        for number, close in enumerate(ends):
            worker, link = await rig.start(str(number))
            monkeypatch.setattr(link, "close", close)
            await rig.workers.drop(worker.owner)
        assert {(await rig.told()).owner.worker_id for _ in ends} == {"0", "1"}


async def test_a_listener_that_fails_keeps_nothing_from_the_others() -> None:
    async with Rig() as rig:

        async def fail(lost: Lost) -> None:
            raise RuntimeError("a bug")

        rig.workers._listeners.insert(0, fail)
        for name in ("a", "b"):
            worker, _ = await rig.start(name)
            await rig.workers.drop(worker.owner)
        assert {(await rig.told()).owner.worker_id for _ in range(2)} == {"a", "b"}


async def test_all_links_are_closed_at_the_end() -> None:
    async with Rig() as rig:
        links = [(await rig.start(str(number)))[1] for number in range(3)]
    assert [link.closed for link in links] == [1, 1, 1]


def test_a_worker_may_miss_two_beats() -> None:
    with pytest.raises(InvalidRequest, match="three beats"):
        WorkersConfig(beat_s=5, lost_after_s=12)
