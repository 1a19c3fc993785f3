"""When a task's files are collected, and what that may do to its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, EndedBy, Outcome, TaskStatus
from codegen_mcp.engine.base import OnDisconnect, ResultEvent
from codegen_mcp.engine.task_ports import Collected, TaskSession
from codegen_mcp.testing.task_rig import TaskRig
from codegen_mcp.tools.registry import tools_by_name

TOOLS = tools_by_name()
CODE = {"code": "pass"}
FOUND = "art_" + "0" * 32


class Collector:
    """Registers one artifact each time; goes on only when it is let."""

    def __init__(self, *, note: str = "", wanted: bool = True) -> None:
        self.asked: list[str] = []
        self.note = note
        self._wanted = wanted
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.begun = asyncio.Event()

    def wanted(self, session: TaskSession) -> bool:
        return self._wanted

    async def collect(self, session: TaskSession, task_id: str, collected: Collected) -> None:
        self.asked.append(task_id)
        collected.artifacts.append(FOUND)
        self.begun.set()
        await self.go_on.wait()
        collected.note = self.note


def ends(**fields: object):
    async def script(command: Command, sink: OutputSink) -> Outcome:
        return Outcome(**{"ended_by": EndedBy.EXIT, "exit_code": 0, **fields})  # type: ignore[arg-type]

    return script


async def end_of(rig: TaskRig, tool: str = "run.python", arguments: object = None) -> ResultEvent:
    end = await rig.end_of(rig.create(), tool, arguments or CODE)
    assert isinstance(end, ResultEvent), end
    return end


async def test_what_was_registered_is_named_in_the_result_and_in_its_record(tmp_path: Path):
    collector = Collector()
    async with TaskRig(tmp_path, TOOLS, collector=collector, script=ends()) as rig:
        session = rig.create()
        end = await rig.end_of(session, "run.python", CODE, task_id="t")
        assert (end.artifacts, end.metadata.remedy) == ((FOUND,), "")
        session_id = session.session_id
    async with TaskRig(tmp_path, TOOLS) as rig:
        (again,) = await rig.follow(rig.create(session_id), "t")
        assert again.artifacts == (FOUND,)
    assert collector.asked == ["t"]


async def test_what_was_left_out_follows_what_the_run_itself_says(tmp_path: Path):
    collector = Collector(note="2 files were left out")
    failed = ends(ended_by=EndedBy.MEMORY, exit_code=137, remedy="use less memory")
    async with TaskRig(tmp_path, TOOLS, collector=collector, script=failed) as rig:
        end = await end_of(rig)
    assert end.metadata.remedy == "use less memory; 2 files were left out"
    assert (end.status, end.metadata.ended_by) == (TaskStatus.FAILURE, EndedBy.MEMORY)


async def test_a_tool_that_runs_no_code_collects_nothing(tmp_path: Path):
    collector = Collector()
    async with TaskRig(tmp_path, TOOLS, collector=collector) as rig:
        end = await end_of(rig, "echo", {"message": "hi"})
    assert (end.artifacts, collector.asked) == ((), [])


async def test_nothing_is_collected_where_nothing_is_wanted(tmp_path: Path):
    collector = Collector(wanted=False)
    async with TaskRig(tmp_path, TOOLS, collector=collector, script=ends()) as rig:
        end = await end_of(rig)
    assert (end.artifacts, collector.asked) == ((), [])


async def test_a_cancelled_run_leaves_its_files_to_the_next(tmp_path: Path):
    collector = Collector()
    async with TaskRig(tmp_path, TOOLS, collector=collector) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE, on_disconnect=OnDisconnect.DETACH)
        await rig.sandboxes[session.session_id].play(0)
        await rig.tasks.cancel(task_id, session.session_id, "")
        end = (await rig.follow(session, task_id))[-1]
    assert isinstance(end, ResultEvent)
    assert (end.status, collector.asked) == (TaskStatus.CANCELLED, [])


async def test_a_cancel_while_files_are_registered_keeps_the_answer(tmp_path: Path):
    collector = Collector()
    collector.go_on.clear()
    async with TaskRig(tmp_path, TOOLS, collector=collector, script=ends()) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE, on_disconnect=OnDisconnect.DETACH)
        await collector.begun.wait()
        await rig.tasks.cancel(task_id, session.session_id, "")
        end = (await rig.follow(session, task_id))[-1]
    assert isinstance(end, ResultEvent)
    assert (end.status, end.metadata.ended_by) == (TaskStatus.SUCCESS, EndedBy.EXIT)
    assert end.value is not None
    assert end.artifacts == (FOUND,)
    assert "cancelled while files of artifacts/ were registered" in end.metadata.remedy


async def test_no_other_code_of_the_session_runs_while_files_are_registered(tmp_path: Path):
    collector = Collector()
    collector.go_on.clear()
    async with TaskRig(tmp_path, TOOLS, collector=collector, script=ends()) as rig:
        session = rig.create()
        first = await rig.submit(session, "run.python", CODE)
        second = await rig.submit(session, "run.python", CODE)
        await collector.begun.wait()
        assert rig.tasks.status(second, session.session_id).state == "queued"
        collector.go_on.set()
        for task_id in (first, second):
            assert isinstance((await rig.follow(session, task_id))[-1], ResultEvent)
    assert collector.asked == [first, second]
