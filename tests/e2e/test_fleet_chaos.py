"""A fleet under random faults: what was acknowledged is kept, and nothing is run twice."""

from __future__ import annotations

import asyncio
import os
import random
import shutil

import pytest

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp.testing.fleet import LOST_AFTER_S, Fleet, dialled, open_fleet
from codegen_mcp.testing.fleet_caller import Caller, all_get_on
from codegen_mcp.testing.fleet_net import FleetNet
from codegen_mcp.testing.fleet_witness import Witness

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
ROUNDS = int(os.environ.get("CODEGEN_TEST_ROUNDS", "20"))
pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.soak,
    pytest.mark.skipif(not SOAK, reason="long"),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
    ),
]


async def killed(fleet: Fleet, name: str, dice: random.Random) -> None:
    """A worker; it comes back at once, or when it has been declared lost."""
    await fleet.workers[name].kill()
    await asyncio.sleep(dice.choice((0, LOST_AFTER_S + 2)))
    await fleet.workers[name].start()


async def stopped(fleet: Fleet, name: str, dice: random.Random) -> None:
    """A worker, for less or for more than it may be silent."""
    fleet.workers[name].stop()
    await asyncio.sleep(dice.choice((LOST_AFTER_S / 3, LOST_AFTER_S + 2)))
    fleet.workers[name].resume()


async def drained(fleet: Fleet, name: str, dice: random.Random) -> None:
    """A worker."""
    assert await fleet.workers[name].drain() == 0
    await fleet.workers[name].start()


async def coordinator_killed(fleet: Fleet, name: str, dice: random.Random) -> None:
    """It is started again at once, or after the workers have given up waiting for long."""
    await fleet.coordinator.kill()
    await asyncio.sleep(dice.choice((0, LOST_AFTER_S)))
    await fleet.coordinator.start()


async def coordinator_stopped(fleet: Fleet, name: str, dice: random.Random) -> None:
    """For longer than a worker may be silent."""
    fleet.coordinator.stop()
    await asyncio.sleep(LOST_AFTER_S + 2)
    fleet.coordinator.resume()


async def both_killed(fleet: Fleet, name: str, dice: random.Random) -> None:
    """A worker and the coordinator; either may be back first."""
    await asyncio.gather(fleet.workers[name].kill(), fleet.coordinator.kill())
    await asyncio.gather(fleet.workers[name].start(), fleet.coordinator.start())


async def cut(fleet: Fleet, name: str, dice: random.Random) -> None:
    """The network of a worker, for less or for more than it may be silent."""
    assert fleet.net is not None
    await fleet.net.cut(name)
    await asyncio.sleep(dice.choice((LOST_AFTER_S / 3, LOST_AFTER_S + 2)))
    await fleet.net.mend(name)


FAULTS = (
    *(killed, killed, killed, stopped, stopped, cut, cut),
    *(drained, coordinator_killed, coordinator_stopped, both_killed),
)


@pytest.mark.parametrize("seed", [int(os.environ.get("CODEGEN_TEST_SEED", "1"))])
async def test_whatever_happens_nothing_acknowledged_is_lost_and_nothing_runs_twice(
    seed: int,
) -> None:
    dice = random.Random(seed)
    async with (
        FleetNet(["a", "b"]) as net,
        open_fleet(net=net, each={"a": dialled(net, "a")}) as fleet,
    ):
        callers = [
            Caller(
                fleet,
                number,
                task_s=0.5,
                durability=common_pb2.DURABILITY_SYNC,
                auto_restore=bool(number % 2),
            )
            for number in range(4)
        ]
        over = asyncio.Event()
        with Witness(fleet.base) as witness:
            async with asyncio.TaskGroup() as group:
                for caller in callers:
                    await caller.begin()
                    group.create_task(caller.work(over))
                await all_get_on(fleet, callers)
                done = []
                for _ in range(ROUNDS):
                    witness.look()
                    holder = fleet.holder(dice.choice(callers).session)
                    fault, name = dice.choice(FAULTS), holder.worker or "a"
                    done.append(f"{fault.__name__} {name}")
                    await fault(fleet, name, dice)
                    await fleet.joined(2)
                    await all_get_on(fleet, callers)
                over.set()
            for caller in callers:
                await caller.check()
            repeated = set[str]().union(*(caller.repeated for caller in callers))
            twice = {name for name, count in witness.runs().items() if count > 1} - repeated
            assert not twice, (twice, done)
