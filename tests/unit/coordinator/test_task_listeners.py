"""Who follows which task, and in which order tasks go to their sessions."""

from __future__ import annotations

import asyncio

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp.coordinator.task_listeners import Audiences, TaskTurns
from codegen_mcp.coordinator.task_streams import Passed


async def test_turns_of_one_session_come_in_the_order_they_were_asked_for() -> None:
    turns, order = TaskTurns(), []

    async def one(number: int) -> None:
        turn = turns.turn("s")
        await turn.wait()
        order.append(number)
        await asyncio.sleep(0)
        turn.done()
        turn.done()  # a second time is nothing

    await asyncio.gather(*map(one, range(5)))
    assert order == list(range(5))


async def test_turns_of_different_sessions_do_not_wait_for_each_other() -> None:
    turns = TaskTurns()
    first, second = turns.turn("a"), turns.turn("b")
    await first.wait()
    await asyncio.wait_for(second.wait(), 1)


async def test_a_turn_that_was_given_up_while_waiting_lets_the_next_one_go() -> None:
    turns = TaskTurns()
    first, second, third = (turns.turn("s") for _ in range(3))
    await first.wait()
    waiting = asyncio.ensure_future(second.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    second.done()
    first.done()
    await asyncio.wait_for(third.wait(), 1)


def test_a_task_is_left_alone_when_the_last_of_its_listeners_leaves() -> None:
    audiences = Audiences()
    with audiences.listening("s", "t", cancels=True):
        with audiences.listening("s", "t", cancels=False) as second:
            assert second.cancels  # as its first request said
        assert not audiences.left_alone("s", "t")
    assert audiences.left_alone("s", "t")


def log(offset: int, data: bytes) -> pb.TaskResponse:
    entry = pb.LogEntry(source="stdout", offset=offset, data=data, message=data.decode())
    return pb.TaskResponse(log=entry)


def test_output_that_was_passed_on_is_left_out_to_the_byte() -> None:
    passed = Passed()
    assert passed.cut(log(0, b"abc")) is not None
    assert passed.cut(log(0, b"abc")) is None
    rest = passed.cut(log(2, b"cde"))
    assert rest is not None
    assert (rest.log.offset, rest.log.data, rest.log.message) == (3, b"de", "de")
    assert passed.ends == {"stdout": 5}
