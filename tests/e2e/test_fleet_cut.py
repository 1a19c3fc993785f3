"""The network between a coordinator and its workers is cut, silently, and comes back.

Worker ``a`` is dialled by the coordinator, ``b`` is served over its TaskStream.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.testing.fleet import LOST_AFTER_S, Fleet, dialled, open_fleet
from codegen_mcp.testing.fleet_judge import begun, end, in_time, unknown
from codegen_mcp.testing.fleet_net import FleetNet
from codegen_mcp.testing.fleet_witness import Witness, watched

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.soak,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
    ),
]

AND_BACK = [("a", "b"), ("b", "a")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def net() -> AsyncIterator[FleetNet]:
    async with FleetNet(["a", "b"]) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(net: FleetNet) -> AsyncIterator[Fleet]:
    async with open_fleet(net=net, each={"a": dialled(net, "a")}) as opened:
        assert "worker.dialled" in opened.coordinator.log
        yield opened


@pytest.fixture
def witness(fleet: Fleet) -> Iterator[Witness]:
    with Witness(fleet.base) as opened:
        yield opened


@pytest.mark.parametrize(("victim", "other"), AND_BACK if SOAK else AND_BACK[1:])
async def test_a_short_cut_is_not_noticed(
    fleet: Fleet, net: FleetNet, witness: Witness, victim: str, other: str
) -> None:
    session = await fleet.session(victim)
    running = asyncio.create_task(
        fleet.run(session, watched("short", "time.sleep(1.5); print('done')"))
    )
    await begun(witness, fleet, "short")
    await net.cut(victim)
    during = asyncio.create_task(fleet.stdout(session, "print(1)"))
    await asyncio.sleep(LOST_AFTER_S / 4)
    await net.mend(victim)
    assert (await running).stdout == "done\n"
    assert await during == "1\n"
    held = fleet.holder(session)
    assert (held.worker, held.epoch) == (victim, 1)
    assert witness.runs() == {"short": 1}
    await end(fleet, session)


@pytest.mark.parametrize(("victim", "other"), AND_BACK if SOAK else AND_BACK[:1])
async def test_a_worker_that_was_cut_off_for_too_long_is_fenced_when_it_is_back(
    fleet: Fleet, net: FleetNet, witness: Witness, victim: str, other: str
) -> None:
    """It works on meanwhile; nothing of that is ever seen."""
    session = await fleet.session(victim)
    bare = await fleet.session(victim)
    await fleet.stdout(session, "open('kept', 'w').write('yes')")
    await fleet.save(session)
    late = "time.sleep(1); open('late', 'w').write('yes'); time.sleep(2); print('late')"
    running = asyncio.create_task(fleet.run(session, watched("late", late)))
    await begun(witness, fleet, "late")
    await net.cut(victim)
    answers = await asyncio.gather(
        fleet.run(session, watched("during", "print(sorted(os.listdir()))")),
        fleet.run(bare, "print(1)"),
    )
    assert unknown(await running)
    for answer in answers:
        in_time(answer)
    listed = await fleet.stdout(session, "import os; print('late' in os.listdir())")
    assert listed == "False\n"
    held = fleet.holder(session)
    assert (held.worker, held.epoch) == (other, 2)
    gone = in_time(await fleet.run(bare, "print(1)"))
    assert gone.code == "NOT_FOUND", gone
    await net.mend(victim)
    await fleet.joined(2)

    async def alone() -> bool:
        """The late worker has ended what is not its own any more."""
        capacity = await fleet.wire.sessions.GetCapacity(pb.CapacityRequest(), timeout=5)
        return bool(capacity.active_sessions == 1)

    await fleet.until(alone, "the end of the late copies")
    listed = await fleet.stdout(session, "import os; print('late' in os.listdir())")
    assert listed == "False\n"
    assert fleet.holder(session).epoch == 2
    assert set(witness.runs().values()) == {1}
    probe = await fleet.session(victim)
    await end(fleet, session, probe)
