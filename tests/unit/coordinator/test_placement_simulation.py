"""Many coordinators that place sessions on many workers, by loads that are old when used."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import pytest

from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.placement import Placement, Refused, Wanted
from codegen_mcp.coordinator.worker_view import Load, Registration, Worker
from codegen_mcp.core.errors import Full
from codegen_mcp.testing.virtual_time import run_virtual
from codegen_mcp.testing.workers_rig import SilentLink

BEAT_S = 2.0
HOP_S = 0.005
LIFE_S = 60.0

Make = Callable[[Worker], Awaitable[None]]
Place = Callable[[Sequence[Worker], Make], Awaitable[None]]


@dataclass(slots=True)
class Host:
    """What is really on a worker."""

    capacity: int
    active: int = 0


class Fleet:
    """Hosts, and what each of several coordinators believes of them."""

    def __init__(self, capacities: Sequence[int], *, coordinators: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.hosts = [Host(capacity) for capacity in capacities]
        self.views = [
            [self._view(number, host) for number, host in enumerate(self.hosts)]
            for _ in range(coordinators)
        ]
        self.asked = self.made = self.failed = 0

    def _view(self, number: int, host: Host) -> Worker:
        owner = Owner(worker_id=str(number), incarnation=1)
        worker = Worker(owner, Registration(worker_id=owner.worker_id), start_id="1")
        worker.link = SilentLink(owner)
        worker.learn(Load(total=host.capacity, active=0))
        return worker

    async def beat(self, number: int) -> None:
        await asyncio.sleep(self.rng.random() * BEAT_S)
        while True:
            host = self.hosts[number]
            for view in self.views:
                view[number].learn(Load(total=host.capacity, active=host.active))
            await asyncio.sleep(BEAT_S)

    async def session(self, view: Sequence[Worker], place: Place, *, life_s: float) -> None:
        """One, from its creation to its end."""

        async def make(worker: Worker) -> None:
            nonlocal host
            self.asked += 1
            await asyncio.sleep(HOP_S)
            host = self.hosts[int(worker.worker_id)]
            if host.active >= host.capacity:
                raise Refused(Full("no room"))
            host.active += 1
            await asyncio.sleep(HOP_S)

        host = self.hosts[0]
        try:
            await place(view, make)
        except (Full, Refused):
            self.failed += 1
            return
        self.made += 1
        await asyncio.sleep(life_s)
        host.active -= 1

    async def live(self, place: Place, *, load: float, seconds: float) -> None:
        """Sessions come and go, so many that this part of all places is taken on average."""
        places = sum(host.capacity for host in self.hosts)
        async with asyncio.TaskGroup() as group:
            beats = [group.create_task(self.beat(number)) for number in range(len(self.hosts))]
            async with asyncio.TaskGroup() as sessions:
                for _ in range(int(places * load)):
                    life_s = self.rng.random() * LIFE_S
                    view = self.rng.choice(self.views)
                    sessions.create_task(self.session(view, place, life_s=life_s))
                    await asyncio.sleep(HOP_S)
                self.asked = self.made = self.failed = 0
                # Each ends after LIFE_S and is followed by another one: the load stays as it is.
                for _ in range(int(places * load * seconds / LIFE_S)):
                    await asyncio.sleep(LIFE_S / places / load)
                    view = self.rng.choice(self.views)
                    sessions.create_task(self.session(view, place, life_s=LIFE_S))
            for task in beats:
                task.cancel()


def ours(rng: random.Random) -> Place:
    async def place(view: Sequence[Worker], make: Make) -> None:
        await Placement(lambda: view, rng=rng).place(Wanted(), make)

    return place


async def most_available(view: Sequence[Worker], make: Make) -> None:
    """What is not done here: the emptiest by the last heartbeats, nothing reserved, one try."""

    def room(worker: Worker) -> int:
        assert worker.load is not None
        return worker.load.total - worker.load.active

    await make(max(view, key=room))


@pytest.mark.parametrize("load", [0.82, 0.96])
def test_no_session_is_refused_while_there_is_room(load: float) -> None:
    fleet = Fleet([10] * 200, coordinators=20, seed=3)
    run_virtual(fleet.live(ours(fleet.rng), load=load, seconds=60))
    assert fleet.made >= int(2000 * load)
    assert fleet.failed == 0
    assert fleet.asked < fleet.made * 1.25, "a second try is the exception"


def test_the_emptiest_alone_would_refuse_many() -> None:
    """So that the test above is known to measure what it says."""
    fleet = Fleet([10] * 200, coordinators=20, seed=3)
    run_virtual(fleet.live(most_available, load=0.82, seconds=60))
    assert fleet.failed > 0.1 * (fleet.made + fleet.failed)


@pytest.mark.parametrize(
    "capacities", [[40, 80, 160], [10] * 12 + [30] * 6, [100, 200]], ids=["three", "18", "two"]
)
def test_200_sessions_are_spread_by_capacity(capacities: list[int]) -> None:
    fleet = Fleet(capacities, coordinators=1, seed=5)
    part = 200 / sum(capacities)

    async def all_at_once() -> None:
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(fleet.session(fleet.views[0], place, life_s=1000))
                for _ in range(200)
            ]
            await asyncio.sleep(1)
            for host in fleet.hosts:
                assert abs(host.active / host.capacity - part) < 0.15, fleet.hosts
            for call in calls:
                call.cancel()

    place = ours(fleet.rng)
    run_virtual(all_at_once())
    assert (fleet.made, fleet.failed) == (200, 0)
