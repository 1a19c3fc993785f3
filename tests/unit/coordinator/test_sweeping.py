"""Rows that nobody asks for any more end; those that wait for something stay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from codegen_mcp.coordinator.directory.base import Commit, Directory, Owner, RowState, SessionRow
from codegen_mcp.coordinator.directory.memory import MemoryDirectory
from codegen_mcp.coordinator.failover import Failover
from codegen_mcp.coordinator.fencing import Fencing
from codegen_mcp.coordinator.placement import Placement
from codegen_mcp.coordinator.routes import RouterConfig, Routes
from codegen_mcp.coordinator.sweeping import ASIDE_KEPT_S, LOST_KEPT_S, Sweeper
from codegen_mcp.coordinator.workers import Workers
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.testing.manual_clock import ManualClock

ROW = SessionRow(
    session_id="ses_1",
    principal="alice",
    owner=None,
    epoch=1,
    checkpoint_id="",
    sequence=0,
    state=RowState.CREATING,
    auto_restore=False,
    adhoc=False,
    store_id="",
)


class Parts:
    """A sweeper over a directory in memory, with no worker here."""

    def __init__(self, directory: Directory, workers: Workers) -> None:
        self.directory = directory
        self.clock = ManualClock()
        self.routes = Routes(directory, workers, RouterConfig())
        self.failover = Failover(self.routes, Placement(workers.all), OwnedTasks())
        self.sweeper = Sweeper(self.routes, self.failover, self.clock)

    async def state(self) -> RowState:
        row = await self.directory.get("ses_1")
        assert row is not None
        return row.state


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    async with MemoryDirectory() as directory, Workers(directory) as workers:
        yield Parts(directory, workers)


async def live(parts: Parts, **changes: object) -> Owner:
    owner = Owner(worker_id="w", incarnation=await parts.directory.register("w", "start"))
    await parts.directory.reserve(replace(ROW, owner=owner, **changes))  # type: ignore[arg-type]
    await parts.directory.confirm("ses_1", owner, 1)
    return owner


async def test_a_session_lost_without_checkpoint_waits_an_hour_for_its_worker(parts: Parts) -> None:
    await parts.directory.declare_dead(await live(parts))
    await parts.sweeper.sweep()
    parts.clock.advance(LOST_KEPT_S - 1)
    await parts.sweeper.sweep()
    assert await parts.state() is RowState.LOST
    parts.clock.advance(2)
    await parts.sweeper.sweep()
    assert await parts.state() is RowState.ENDED


async def test_a_lost_session_with_a_checkpoint_stays(parts: Parts) -> None:
    owner = await live(parts)
    await parts.directory.commit(owner, [Commit(session_id="ses_1", epoch=1, checkpoint_id="c")])
    await parts.directory.declare_dead(owner)
    for _ in range(3):
        await parts.sweeper.sweep()
        parts.clock.advance(10 * LOST_KEPT_S)
    assert await parts.state() is RowState.LOST


async def test_a_session_of_a_single_call_that_was_put_aside_ends_after_a_day(parts: Parts) -> None:
    owner = await live(parts, adhoc=True)
    await parts.directory.release("ses_1", owner, 1)
    await parts.sweeper.sweep()
    parts.clock.advance(ASIDE_KEPT_S - 1)
    await parts.sweeper.sweep()
    assert await parts.state() is RowState.LIVE
    parts.clock.advance(2)
    await parts.sweeper.sweep()
    assert await parts.state() is RowState.ENDED


async def test_a_session_that_is_held_is_never_swept(parts: Parts) -> None:
    await live(parts, adhoc=True)
    for _ in range(3):
        await parts.sweeper.sweep()
        parts.clock.advance(10 * ASIDE_KEPT_S)
    assert await parts.state() is RowState.LIVE


async def test_what_a_dead_coordinator_was_making_ends_and_what_this_one_makes_does_not(
    parts: Parts,
) -> None:
    owner = Owner(worker_id="w", incarnation=await parts.directory.register("w", "start"))
    await parts.directory.reserve(replace(ROW, owner=owner))
    fencing = Fencing(parts.routes, parts.failover)
    parts.routes.making.add("ses_1")
    await fencing.report(owner, [])
    assert await parts.state() is RowState.CREATING
    parts.routes.making.clear()
    await fencing.report(owner, [])
    assert await parts.state() is RowState.ENDED
