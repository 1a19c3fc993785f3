"""When a spare is moved into a group of its own, and when not."""

from __future__ import annotations

import asyncio
import threading

from codegen_mcp.sandbox.spare_mover import SpareMover

WITHIN_S = 5.0


class Groups:
    """Remembers what is asked of it; a move waits until it is let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_move = threading.Event()
        self.moving = threading.Event()
        self.may_move.set()

    def prepare(self, number: int, pid: int) -> bool:
        self.moving.set()
        assert self.may_move.wait(WITHIN_S)
        self.asked.append(f"prepare {number} {pid}")
        return True

    def begin(self, number: int) -> None:
        self.asked.append(f"begin {number}")

    def kill(self) -> bool:
        self.asked.append("kill")
        return True

    def end(self) -> None:
        self.asked.append("end")


async def moved(groups: Groups) -> None:
    assert await asyncio.to_thread(groups.moving.wait, WITHIN_S)


async def test_a_spare_that_waits_is_moved() -> None:
    groups = Groups()
    mover = SpareMover(groups)
    mover.new_spare(3, 17)
    await moved(groups)
    await mover.aclose()
    assert groups.asked == ["prepare 3 17"]


async def test_a_run_or_another_spare_that_comes_first_spares_the_move() -> None:
    groups = Groups()
    mover = SpareMover(groups)
    mover.new_spare(1, 10)
    mover.begin(1)
    mover.end()
    mover.new_spare(2, 11)
    mover.new_spare(3, 12)
    await moved(groups)
    await mover.aclose()
    assert groups.asked == ["begin 1", "end", "prepare 3 12"]


async def test_closing_waits_for_a_move_under_way_and_starts_no_other() -> None:
    groups = Groups()
    groups.may_move.clear()
    mover = SpareMover(groups)
    mover.new_spare(1, 10)
    await moved(groups)
    mover.new_spare(2, 11)
    closing = asyncio.ensure_future(mover.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    groups.may_move.set()
    await asyncio.wait_for(closing, WITHIN_S)
    assert groups.asked == ["prepare 1 10"]


async def test_without_groups_nothing_happens() -> None:
    mover = SpareMover(None)
    mover.new_spare(1, 10)
    mover.begin(1)
    mover.kill()
    mover.end()
    await mover.aclose()
