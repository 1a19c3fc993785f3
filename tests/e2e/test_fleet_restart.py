"""Workers of a fleet that are killed and started again before they count as lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from codegen_mcp.testing.fleet import Fleet, open_fleet
from codegen_mcp.testing.fleet_judge import begun, end, unknown
from codegen_mcp.testing.fleet_witness import Witness, watched

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
LOST_AFTER_S = 30.0
STATED_S = 80.0
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    pytest.mark.soak,
    pytest.mark.skipif(not SOAK, reason="long"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet() -> AsyncIterator[Fleet]:
    async with open_fleet(
        each={"b": {"ADVERTISE_ADDR": "off"}},
        WORKER_LOST_AFTER_S=str(LOST_AFTER_S),
        ROUTE_WAIT_S="35",
    ) as opened:
        yield opened


@pytest.fixture
def witness(fleet: Fleet) -> Iterator[Witness]:
    with Witness(fleet.base) as opened:
        yield opened


@pytest.mark.parametrize("victim", ["a", "b"])
async def test_a_worker_that_is_started_again_at_once_keeps_its_sessions_as_they_are(
    fleet: Fleet, witness: Witness, victim: str
) -> None:
    session = await fleet.session(victim)
    await fleet.stdout(session, "open('unsaved', 'w').write('yes')")
    running = asyncio.create_task(fleet.run(session, watched("cut", "time.sleep(60)")))
    await begun(witness, fleet, "cut")
    await fleet.workers[victim].kill()
    await fleet.workers[victim].start()
    assert unknown(await running, stated_s=STATED_S)
    assert await fleet.stdout(session, "print(open('unsaved').read())") == "yes\n"
    held = fleet.holder(session)
    assert (held.worker, held.epoch) == (victim, 2)
    assert witness.runs() == {"cut": 1}
    await fleet.joined(2)
    await end(fleet, session)
