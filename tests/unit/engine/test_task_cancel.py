"""How tasks are ended early: cancel, disconnect, destroy, shutdown; and how readers come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Draining, NotFound
from codegen_mcp.core.task import EndedBy, Stream, TaskStatus
from codegen_mcp.engine.base import OnDisconnect, OutputEvent, ResultEvent, TaskEvent
from codegen_mcp.engine.session import Session
from codegen_mcp.testing.task_rig import TaskRig
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec
from codegen_mcp.tools.registry import tools_by_name

TOOLS = tools_by_name()
CODE = {"code": "print(1)"}
DETACH = OnDisconnect.DETACH


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def reader_of(rig: TaskRig, session: Session, task_id: str) -> AsyncGenerator[TaskEvent, None]:
    return rig.tasks.events(task_id, session.session_id)


def cancelled(event: TaskEvent) -> ResultEvent:
    assert isinstance(event, ResultEvent), event
    assert event.status is TaskStatus.CANCELLED
    assert event.metadata.ended_by is EndedBy.CANCELLED
    assert event.metadata.exit_code == 130
    return event


async def test_a_running_task_is_cancelled_with_its_partial_output(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE, on_disconnect=DETACH)
        play = await rig.sandboxes[session.session_id].play(0)
        await play.print(Stream.STDOUT, b"half")
        assert await rig.tasks.cancel(task_id, session.session_id, "not needed") == (
            True,
            "running",
        )
        assert play.killed
        events = await rig.follow(session, task_id)
        assert [e.data for e in events if isinstance(e, OutputEvent)] == [b"half"]
        result = cancelled(events[-1])
        assert result.value is not None
        assert result.value.model_dump()["stdout"] == "half"
        assert result.metadata.stdout_bytes == 4
        assert result.metadata.peak.memory_peak_bytes == 2000
        assert "not needed" in result.metadata.remedy
        assert rig.runs.running == 0


async def test_a_queued_task_is_cancelled_and_never_runs(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        sandbox = rig.sandboxes[session.session_id]
        first = await rig.submit(session, "run.python", CODE)
        second = await rig.submit(session, "run.python", CODE)
        third = await rig.submit(session, "run.python", CODE)
        play = await sandbox.play(0)
        assert await rig.tasks.cancel(second, session.session_id, "") == (True, "queued")
        assert cancelled((await rig.follow(session, second))[-1]).value is None
        play.finish()
        (await sandbox.play(1)).finish()
        await rig.follow(session, third)
        await rig.follow(session, first)
        assert len(sandbox.plays) == 2


async def test_a_task_cancelled_before_its_first_step_ends_all_the_same(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE)
        assert await rig.tasks.cancel(task_id, session.session_id, "") == (True, "queued")
        cancelled((await rig.follow(session, task_id))[-1])
        assert rig.sandboxes[session.session_id].plays == []


async def test_cancel_after_the_end_twice_and_of_nobody_has_one_answer_each(
    tmp_path: Path,
) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        sid = session.session_id
        done = await rig.submit(session, "echo")
        await rig.follow(session, done)
        assert await rig.tasks.cancel(done, sid, "") == (False, "finished")
        task_id = await rig.submit(session, "run.python", CODE)
        await rig.sandboxes[sid].play(0)
        answers = await asyncio.gather(
            rig.tasks.cancel(task_id, sid, "one"), rig.tasks.cancel(task_id, sid, "two")
        )
        assert answers == [(True, "running"), (False, "running")]
        assert await rig.tasks.cancel(task_id, sid, "three") == (False, "finished")
        assert "one" in cancelled((await rig.follow(session, task_id))[-1]).metadata.remedy
        with pytest.raises(NotFound):
            await rig.tasks.cancel("nobody", sid, "")


async def test_a_writer_held_by_a_stalled_reader_is_cancelled_at_once(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE)
        stalled = reader_of(rig, session, task_id)
        play = await rig.sandboxes[session.session_id].play(0)
        await play.print(Stream.STDOUT, b"x" * 65536)
        assert isinstance(await anext(stalled), OutputEvent)
        block = b"x" * 65536

        async def flood() -> None:
            for _ in range(80):
                await play.print(Stream.STDOUT, block)

        flooding = asyncio.ensure_future(flood())
        view = rig.tasks.status
        await until(lambda: view(task_id, session.session_id).stdout_bytes > 4 << 20)
        await asyncio.sleep(0)
        assert not flooding.done()
        assert (await rig.tasks.cancel(task_id, session.session_id, ""))[0]
        await flooding
        events = [event async for event in stalled]
        cancelled(events[-1])


async def test_the_last_reader_that_leaves_cancels_the_task(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE)
        one, two = reader_of(rig, session, task_id), reader_of(rig, session, task_id)
        play = await rig.sandboxes[session.session_id].play(0)
        await play.print(Stream.STDOUT, b"a")
        await anext(one)
        await anext(two)
        await one.aclose()
        assert not play.killed
        await two.aclose()
        await until(lambda: rig.tasks.active == 0)
        assert play.killed
        result = cancelled((await rig.follow(session, task_id))[-1])
        assert "DETACH" in result.metadata.remedy


async def test_a_task_that_nobody_ever_followed_goes_on(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE)
        play = await rig.sandboxes[session.session_id].play(0)
        await play.print(Stream.STDOUT, b"a" * 100)
        play.finish()
        events = await rig.follow(session, task_id)
        assert isinstance(events[-1], ResultEvent)
        assert events[-1].status is TaskStatus.SUCCESS


async def test_a_detached_task_goes_on_and_a_later_reader_gets_every_byte_once(
    tmp_path: Path,
) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE, on_disconnect=DETACH)
        reader = reader_of(rig, session, task_id)
        play = await rig.sandboxes[session.session_id].play(0)
        await play.print(Stream.STDOUT, b"abc")
        await play.print(Stream.STDERR, b"E")
        seen = {Stream.STDOUT: b"", Stream.STDERR: b""}
        for _ in range(2):
            event = await anext(reader)
            assert isinstance(event, OutputEvent)
            seen[event.stream] += event.data
        await reader.aclose()
        await play.print(Stream.STDOUT, b"defg")
        play.finish()
        events = await rig.follow(
            session,
            task_id,
            stdout_offset=len(seen[Stream.STDOUT]),
            stderr_offset=len(seen[Stream.STDERR]),
        )
        for event in events[:-1]:
            assert isinstance(event, OutputEvent)
            assert event.offset == len(seen[event.stream])
            seen[event.stream] += event.data
        assert seen == {Stream.STDOUT: b"abcdefg", Stream.STDERR: b"E"}
        assert isinstance(events[-1], ResultEvent)


async def test_destroying_the_session_cancels_what_runs_and_what_waits(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        ids = [await rig.submit(session, "run.python", CODE) for _ in range(3)]
        readers = [asyncio.ensure_future(rig.follow(session, task_id)) for task_id in ids]
        play = await rig.sandboxes[session.session_id].play(0)
        await play.print(Stream.STDOUT, b"partial")
        await rig.destroy(session.session_id)
        for reader in readers:
            events = await reader
            assert "destroyed" in cancelled(events[-1]).metadata.remedy
        assert rig.runs.running == rig.runs.waiting == 0
        with pytest.raises(NotFound):
            rig.tasks.status(ids[0], session.session_id)


async def test_a_gentle_destroy_lets_a_running_task_finish(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE)
        reader = asyncio.ensure_future(rig.follow(session, task_id))
        play = await rig.sandboxes[session.session_id].play(0)
        ending = asyncio.ensure_future(rig.destroy(session.session_id, grace_s=5))
        await asyncio.sleep(0)
        play.finish()
        events = await reader
        await ending
        assert isinstance(events[-1], ResultEvent)
        assert events[-1].status is TaskStatus.SUCCESS


async def test_leaving_the_executor_ends_every_task_and_says_so(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        ids = [await rig.submit(session, "run.python", CODE) for _ in range(2)]
        readers = [asyncio.ensure_future(rig.follow(session, task_id)) for task_id in ids]
        await rig.sandboxes[session.session_id].play(0)
        await rig.tasks.stop()
        for reader in readers:
            result = cancelled((await reader)[-1])
            assert "shutting down" in result.metadata.remedy
        with pytest.raises(Draining):
            await rig.submit(session, "echo")


class Stubborn:
    """Runs code twice and sleeps in between, whatever became of the first run."""

    spec = ToolSpec(
        name="stubborn",
        title="Stubborn",
        description="For tests.",
        arguments=ToolModel,
        result=ToolModel,
        runs_code=True,
    )

    async def run(self, ctx: ToolContext, arguments: ToolModel) -> ToolResult:
        from codegen_mcp.core.task import Command, PythonCode

        command = Command(program=PythonCode(b"1"), limits=ctx.limits)
        await ctx.run(command)
        await ctx.run(command)
        raise AssertionError("unreachable")


async def test_a_tool_that_goes_on_after_its_cancelled_run_is_stopped(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, {"stubborn": Stubborn()}) as rig:
        session = rig.create()
        sandbox = rig.sandboxes[session.session_id]
        task_id = await rig.submit(session, "stubborn", {})
        await sandbox.play(0)
        await rig.tasks.cancel(task_id, session.session_id, "")
        assert cancelled((await rig.follow(session, task_id))[-1]).value is None
        assert len(sandbox.plays) == 1
