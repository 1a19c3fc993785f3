"""A coordinator and two workers as processes: given work, killed, stopped, and started again.

Worker ``a`` is dialled by the coordinator, ``b`` is served over its TaskStream; each drill is done
to either of them. The default run does it to one.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.testing.fleet import LOST_AFTER_S, Fleet, open_fleet
from codegen_mcp.testing.fleet_caller import Caller, all_get_on
from codegen_mcp.testing.fleet_judge import begun, end, in_time, unknown
from codegen_mcp.testing.fleet_witness import Witness, watched

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.soak,
]

SMALL, LARGE = 4, 8
"""Sessions that ``a`` and ``b`` take."""
AND_BACK = [("a", "b"), ("b", "a")]
"""Who suffers, and who takes over."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet() -> AsyncIterator[Fleet]:
    each = {
        "a": {"MAX_SESSIONS": str(SMALL)},
        "b": {"MAX_SESSIONS": str(LARGE), "ADVERTISE_ADDR": "off"},
    }
    async with open_fleet(each=each) as opened:
        yield opened


@pytest.fixture
def witness(fleet: Fleet) -> Iterator[Witness]:
    with Witness(fleet.base) as opened:
        yield opened


async def test_work_is_spread_by_capacity_and_none_is_refused(fleet: Fleet) -> None:
    """As many callers as there are places, one session after the other each."""
    sessions, homes = 200 if SOAK else 24, Counter[str]()
    todo = iter(range(sessions))

    async def caller() -> None:
        for number in todo:
            session = await fleet.session()
            holder = fleet.holder(session)
            assert holder.worker is not None
            homes[holder.worker] += 1
            assert await fleet.stdout(session, f"print({number})") == f"{number}\n"
            await end(fleet, session)

    async with asyncio.TaskGroup() as group:
        for _ in range(SMALL + LARGE - 2):
            group.create_task(caller())
    assert homes.total() == sessions
    part = LARGE / (SMALL + LARGE)
    assert abs(homes["b"] / sessions - part) < 0.2, homes


@pytest.mark.parametrize(("victim", "other"), AND_BACK if SOAK else AND_BACK[:1])
async def test_sessions_of_a_killed_worker_come_back_elsewhere_or_are_said_to_be_lost(
    fleet: Fleet, witness: Witness, victim: str, other: str
) -> None:
    busy = await fleet.session(victim)
    bare = await fleet.session(victim)
    safe = await fleet.session(victim, durability=common_pb2.DURABILITY_SYNC)
    by_itself = await fleet.session(victim, auto_restore=True)
    await fleet.stdout(busy, "open('kept', 'w').write('yes')")
    await fleet.save(busy)
    await fleet.stdout(busy, "open('unsaved', 'w').write('yes')")
    for number in range(3):
        await fleet.stdout(safe, f"open('log', 'a').write('{number}')")
    await fleet.stdout(by_itself, "open('kept', 'w').write('yes')")
    await fleet.save(by_itself)
    running = asyncio.create_task(fleet.run(busy, watched("long", "time.sleep(40)")))
    await begun(witness, fleet, "long")
    await fleet.workers[victim].kill()

    assert unknown(await running)
    assert await fleet.stdout(busy, "import os; print(sorted(os.listdir()))") == "['kept']\n"
    held = fleet.holder(busy)
    assert (held.worker, held.epoch) == (other, 2)
    gone = in_time(await fleet.run(bare, "print(1)"))
    assert (gone.code, gone.reason) == ("NOT_FOUND", "SESSION_LOST")
    assert await fleet.stdout(safe, "print(open('log').read())") == "012\n"

    async def restored() -> bool:
        return fleet.holder(by_itself).worker == other

    await fleet.until(restored, "a session that asked for it, restored before it is used")
    assert await fleet.stdout(by_itself, "print(open('kept').read())") == "yes\n"
    assert witness.runs() == {"long": 1}

    await fleet.workers[victim].start()
    await fleet.joined(2)
    again = await fleet.session(victim)
    assert (fleet.holder(again).incarnation or 0) > 1
    assert await fleet.stdout(busy, "import os; print(sorted(os.listdir()))") == "['kept']\n"
    assert fleet.holder(busy).epoch == 2
    await end(fleet, busy, safe, by_itself, again)


async def test_a_killed_coordinator_finds_everything_where_it_was(
    fleet: Fleet, witness: Witness
) -> None:
    """Tasks go on without it; a caller that asks again under the same id has one run."""
    sessions = [await fleet.session(name) for name in ("a", "b")]
    codes = [watched(f"through-{n}", f"time.sleep(2); print({n})") for n in range(2)]
    calls = [
        asyncio.create_task(fleet.run(session, code, f"tsk_through_{n}", on_disconnect=1))
        for n, (session, code) in enumerate(zip(sessions, codes, strict=True))
    ]
    for number in range(2):
        await begun(witness, fleet, f"through-{number}")
    await fleet.coordinator.kill()
    for call in calls:
        assert in_time(await call).code == "UNAVAILABLE"
    before = [fleet.holder(session) for session in sessions]
    await fleet.coordinator.start()
    await fleet.joined(2)
    for number, (session, code) in enumerate(zip(sessions, codes, strict=True)):
        answer = in_time(await fleet.run(session, code, f"tsk_through_{number}", on_disconnect=1))
        assert answer.stdout == f"{number}\n", answer
    assert [fleet.holder(session) for session in sessions] == before
    assert witness.runs() == {"through-0": 1, "through-1": 1}
    await end(fleet, *sessions)


@pytest.mark.parametrize(("victim", "other"), AND_BACK if SOAK else AND_BACK[:1])
async def test_a_worker_that_was_stopped_for_too_long_is_fenced_when_it_goes_on(
    fleet: Fleet, witness: Witness, victim: str, other: str
) -> None:
    session = await fleet.session(victim, auto_restore=True)
    await fleet.stdout(session, "open('kept', 'w').write('yes')")
    checkpoint = await fleet.save(session)
    late = "time.sleep(1); open('late', 'w').write('yes'); time.sleep(40)"
    running = asyncio.create_task(fleet.run(session, watched("late", late)))
    await begun(witness, fleet, "late")
    fleet.workers[victim].stop()
    try:
        assert unknown(await running)
        assert await fleet.stdout(session, "import os; print(sorted(os.listdir()))") == "['kept']\n"
        held = fleet.holder(session)
        assert (held.worker, held.epoch) == (other, 2)
    finally:
        fleet.workers[victim].resume()
    await fleet.joined(2)
    probe = await fleet.session(victim)

    async def alone() -> bool:
        """The late worker has ended what is not its own any more."""
        capacity = await fleet.wire.sessions.GetCapacity(pb.CapacityRequest(), timeout=5)
        return bool(capacity.active_sessions == 2)

    await fleet.until(alone, "the end of the late copy")
    assert await fleet.stdout(session, "import os; print(sorted(os.listdir()))") == "['kept']\n"
    held = fleet.holder(session)
    assert (held.worker, held.epoch) == (other, 2)
    assert held.checkpoint.split(".")[1:] in ([*checkpoint.split(".")[1:]], ["2", "1"])
    assert witness.runs() == {"late": 1}
    await end(fleet, session, probe)


@pytest.mark.skipif(not SOAK, reason="long")
async def test_a_coordinator_that_was_stopped_holds_it_against_nobody(
    fleet: Fleet, witness: Witness
) -> None:
    sessions = [await fleet.session(name) for name in ("a", "b")]
    calls = [
        asyncio.create_task(fleet.run(session, watched(session, "time.sleep(2); print('done')")))
        for session in sessions
    ]
    for session in sessions:
        await begun(witness, fleet, session)
    fleet.coordinator.stop()
    await asyncio.sleep(LOST_AFTER_S + 1)
    fleet.coordinator.resume()
    for call in calls:
        assert (await call).stdout == "done\n"
    await fleet.joined(2)
    await asyncio.sleep(LOST_AFTER_S)
    for session, name in zip(sessions, ("a", "b"), strict=True):
        assert (fleet.holder(session).worker, fleet.holder(session).epoch) == (name, 1)
        assert await fleet.stdout(session, "print(1)") == "1\n"
    assert witness.runs() == dict.fromkeys(sessions, 1)
    await end(fleet, *sessions)


async def test_a_rolling_restart_loses_nothing_and_runs_nothing_twice(
    fleet: Fleet, witness: Witness
) -> None:
    """Each worker in turn drains, ends, and is started again, while callers go on."""
    callers = [Caller(fleet, number) for number in range(4)]
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for caller in callers:
            await caller.begin()
            group.create_task(caller.work(over))
        await all_get_on(fleet, callers)
        for _ in range(3 if SOAK else 1):
            for name in ("a", "b") if SOAK else ("a",):
                witness.look()
                assert await fleet.workers[name].drain() == 0
                await all_get_on(fleet, callers)
                witness.look()
                await fleet.workers[name].start()
                await fleet.joined(2)
        over.set()
    for caller in callers:
        await caller.check()
        assert not caller.open, caller.told
    assert set(witness.runs().values()) == {1}
    await end(fleet, *(caller.session for caller in callers))
