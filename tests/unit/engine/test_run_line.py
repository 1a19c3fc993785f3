"""Lines: first come, first served, bounded, and closable."""

from __future__ import annotations

import asyncio

import pytest

from codegen_mcp.core.errors import Full, NotFound
from codegen_mcp.engine.run_line import Line, RunSlot


async def start(slot: RunSlot, order: list[str], name: str, release: asyncio.Event) -> None:
    async with slot:
        order.append(name)
        await release.wait()


async def test_runs_of_a_session_go_one_at_a_time_in_the_order_they_came() -> None:
    line, worker = Line(1, 16, "session"), Line(8, 16, "worker")
    order: list[str] = []
    releases = [asyncio.Event() for _ in range(3)]
    tasks = [
        asyncio.create_task(start(RunSlot(line, worker), order, str(index), release))
        for index, release in enumerate(releases)
    ]
    for index, release in enumerate(releases):
        while len(order) <= index:
            await asyncio.sleep(0)
        assert order == [str(one) for one in range(index + 1)]
        assert line.running == 1
        release.set()
    await asyncio.gather(*tasks)
    assert (line.running, line.waiting, worker.running) == (0, 0, 0)


async def test_the_place_is_taken_when_asked_for_not_when_entered() -> None:
    line, worker = Line(1, 16, "session"), Line(8, 16, "worker")
    first, second = RunSlot(line, worker), RunSlot(line, worker)
    order: list[str] = []
    done = asyncio.Event()
    done.set()
    late = asyncio.create_task(start(second, order, "second", done))
    await asyncio.sleep(0)
    assert order == []
    await start(first, order, "first", done)
    await late
    assert order == ["first", "second"]


async def test_a_line_that_is_full_refuses_at_once_and_says_when_to_come_back() -> None:
    line, worker = Line(1, 2, "session 's'"), Line(8, 16, "worker")
    slots = [RunSlot(line, worker) for _ in range(3)]
    with pytest.raises(Full, match="session 's' has 1 run") as caught:
        RunSlot(line, worker)
    assert caught.value.retry_after_s
    slots[2].abandon()
    RunSlot(line, worker).abandon()
    for slot in slots:
        slot.abandon()
    assert (line.running, line.waiting) == (0, 0)


async def test_a_waiter_that_is_cancelled_leaves_its_place() -> None:
    line, worker = Line(1, 16, "session"), Line(8, 16, "worker")
    first = RunSlot(line, worker)
    order: list[str] = []
    done = asyncio.Event()
    done.set()
    gone = asyncio.create_task(start(RunSlot(line, worker), order, "gone", done))
    stays = asyncio.create_task(start(RunSlot(line, worker), order, "stays", done))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    first.abandon()
    await stays
    assert order == ["stays"]
    assert (line.running, line.waiting) == (0, 0)


async def test_a_cancel_that_meets_the_turn_gives_the_turn_on() -> None:
    line, worker = Line(1, 16, "session"), Line(8, 16, "worker")
    first = RunSlot(line, worker)
    order: list[str] = []
    done = asyncio.Event()
    done.set()
    waiter = asyncio.create_task(start(RunSlot(line, worker), order, "waiter", done))
    await asyncio.sleep(0)
    first.abandon()
    waiter.cancel()
    await asyncio.wait([waiter])
    assert line.running == 0


async def test_the_worker_bounds_the_runs_of_all_its_sessions() -> None:
    worker = Line(1, 1, "this worker")
    lines = [Line(1, 16, str(index)) for index in range(3)]
    order: list[str] = []
    release = asyncio.Event()
    running = asyncio.create_task(start(RunSlot(lines[0], worker), order, "a", release))
    waiting = asyncio.create_task(start(RunSlot(lines[1], worker), order, "b", release))
    for _ in range(3):
        await asyncio.sleep(0)
    assert order == ["a"]
    with pytest.raises(Full, match="this worker"):
        await start(RunSlot(lines[2], worker), order, "c", release)
    assert lines[2].running == 0
    release.set()
    await asyncio.gather(running, waiting)
    assert order == ["a", "b"]


async def test_closing_turns_away_those_who_wait_and_those_who_come() -> None:
    line, worker = Line(1, 16, "session"), Line(8, 16, "worker")
    first = RunSlot(line, worker)
    never_entered = RunSlot(line, worker)
    order: list[str] = []
    waiter = asyncio.create_task(start(RunSlot(line, worker), order, "w", asyncio.Event()))
    await asyncio.sleep(0)
    line.close(NotFound("gone"))
    with pytest.raises(NotFound):
        await waiter
    with pytest.raises(NotFound):
        RunSlot(line, worker)
    never_entered.abandon()
    first.abandon()
    assert (line.running, line.waiting) == (0, 0)
