"""A bounded queue to one sender, and credit for each call."""

from __future__ import annotations

import asyncio

import pytest

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.server.foreign_ids import ForeignIds
from codegen_mcp.server.stream_flow import Credit, Outbox

pytestmark = pytest.mark.asyncio


def frame(size: int, name: str = "") -> pb.StreamPart:
    return pb.StreamPart(stream_id=name, message=b"x" * size)


async def started(*works) -> list[asyncio.Task]:
    tasks = [asyncio.ensure_future(work) for work in works]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_whoever_puts_into_a_full_outbox_waits_and_in_line():
    box: Outbox[pb.StreamPart] = Outbox(limit_bytes=100)
    assert await box.put(frame(150, "first"))
    waiting = await started(*(box.put(frame(60, name)) for name in "abc"))
    assert not any(task.done() for task in waiting)
    taken = [(await box.get()).stream_id for _ in range(4)]
    assert taken == ["first", "a", "b", "c"]
    assert await asyncio.gather(*waiting) == [True, True, True]


async def test_one_that_gives_up_its_place_lets_the_next_one_in():
    box: Outbox[pb.StreamPart] = Outbox(limit_bytes=10)
    await box.put(frame(20, "first"))
    one, two = await started(box.put(frame(5, "one")), box.put(frame(5, "two")))
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    assert (await box.get()).stream_id == "first"
    assert await two
    assert (await box.get()).stream_id == "two"


async def test_one_that_is_cancelled_when_its_turn_has_come_passes_it_on():
    box: Outbox[pb.StreamPart] = Outbox(limit_bytes=10)
    await box.put(frame(20))
    one, two = await started(box.put(frame(5, "one")), box.put(frame(5, "two")))
    await box.get()
    one.cancel()
    async with asyncio.timeout(5):
        assert await two
    await asyncio.gather(one, return_exceptions=True)


async def test_closing_lets_everybody_go_and_returns_what_was_not_sent():
    box: Outbox[pb.StreamPart] = Outbox(limit_bytes=10)
    await box.put(frame(20, "unsent"))
    waiting = await started(box.put(frame(5)), box.flush())
    assert [one.stream_id for one in box.close()] == ["unsent"]
    async with asyncio.timeout(5):
        assert await waiting[0] is False
        await waiting[1]
    assert await box.get() is None
    assert await box.put(frame(1)) is False
    assert box.close() == []


async def test_a_flush_waits_until_the_last_one_was_sent():
    box: Outbox[pb.StreamPart] = Outbox()
    await box.put(frame(1))
    (flush,) = await started(box.flush())
    await box.get()
    assert not flush.done()  # it is being sent
    (sender,) = await started(box.get())
    async with asyncio.timeout(5):
        await flush
    sender.cancel()


async def test_credit_lets_one_message_more_pass_than_it_covers():
    credit = Credit(10)
    await credit.take(1000)
    (waiting,) = await started(credit.take(1))
    credit.grant(980)
    await asyncio.sleep(0)
    assert not waiting.done()
    credit.grant(20)
    async with asyncio.timeout(5):
        await waiting
    credit.grant(-5)  # takes nothing away


async def test_released_credit_and_none_at_all_count_nothing():
    credit = Credit(0)
    (waiting,) = await started(credit.take(1))
    credit.release()
    async with asyncio.timeout(5):
        await waiting
        await Credit(None).take(10**12)


async def test_ids_of_others_are_mapped_the_same_each_time_and_ours_are_left():
    ids, again = ForeignIds(), ForeignIds()
    own = "ses_" + "0" * 32
    assert ids.ours(own) == own == ids.theirs(own)
    assert ids.ours("") == ""
    mapped = ids.ours("tenant/7 ü")
    assert mapped == again.ours("tenant/7 ü") != ids.ours("tenant/8")
    assert ids.theirs(mapped) == "tenant/7 ü"
