"""What a tool's call may use: installs, captured runs, and being stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from codegen_mcp.core.errors import InvalidRequest, NotImplementedYet, WrongState
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import KIB, RunLimits
from codegen_mcp.core.task import Argv, Command, EndedBy, Outcome, Stream, TaskStatus
from codegen_mcp.engine.base import ErrorEvent, OutputEvent, ProgressEvent, ResultEvent, TaskEvent
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.task_config import TaskConfig
from codegen_mcp.languages.base import (
    CaptureRun,
    InstalledPackage,
    InstallRequest,
    InstallResult,
    Progress,
)
from codegen_mcp.testing.task_rig import TaskRig
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec
from codegen_mcp.tools.registry import tools_by_name

TOOLS = tools_by_name()


class OneRunInstaller:
    """Installs by one run whose output is the version."""

    def __init__(self) -> None:
        self.asked: dict[str, object] = {}

    async def install(
        self,
        request: InstallRequest,
        *,
        interpreter: Interpreter,
        venv: Path,
        run: CaptureRun,
        progress: Progress,
        env: Mapping[str, str],
        timeout_s: float,
    ) -> InstallResult:
        self.asked = {"venv": venv, "env": env, "timeout_s": timeout_s}
        if request.index_url:
            raise InvalidRequest("no such index")
        await progress(10, "resolve", "one package")
        command = Command(
            program=Argv(("uv",)), limits=RunLimits(timeout_s=timeout_s, output_bytes=1000)
        )
        outcome, stdout, stderr = await run(command)
        name = request.packages[0]
        package = InstalledPackage(name=name, version=stdout.decode(), location="here")
        return InstallResult(
            installed=(package,),
            failed=(),
            output=stderr.decode(),
            exit_code=outcome.exit_code,
            outcome=outcome,
        )


async def test_an_install_runs_captured_in_the_session_and_tells_its_progress(
    tmp_path: Path,
) -> None:
    installer = OneRunInstaller()
    async with TaskRig(tmp_path, TOOLS, installers={"python": installer}) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "pkg.install", {"packages": ["six"]}, env={"A": "b"})
        reading = asyncio.ensure_future(rig.follow(session, task_id))
        sandbox = rig.sandboxes[session.session_id]
        play = await sandbox.play(0)
        await play.print(Stream.STDOUT, b"1.17")
        await play.print(Stream.STDERR, b"words of the installer")
        play.sink.omit(Stream.STDERR, 5)
        play.finish()
        events = await reading
        assert [event.stage for event in events if isinstance(event, ProgressEvent)] == ["resolve"]
        assert not [event for event in events if isinstance(event, OutputEvent)]
        end = events[-1]
        assert isinstance(end, ResultEvent)
        assert end.value is not None
        assert end.value.model_dump()["installed"][0]["version"] == "1.17"
        assert end.value.model_dump()["output"] == "words of the installer"
        assert installer.asked == {"venv": session.venv, "env": {"A": "b"}, "timeout_s": 60.0}
        assert sandbox.packages_changes == 1


async def test_a_cancelled_install_drops_warm_imports_too(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS, installers={"python": OneRunInstaller()}) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "pkg.install", {"packages": ["six"]})
        sandbox = rig.sandboxes[session.session_id]
        play = await sandbox.play(0)
        assert (await rig.tasks.cancel(task_id, session.session_id, ""))[0]
        end = (await rig.follow(session, task_id))[-1]
        assert isinstance(end, ResultEvent)
        assert end.status is TaskStatus.CANCELLED
        assert end.value is None
        assert play.killed
        assert sandbox.packages_changes == 1


async def test_an_installer_s_error_and_a_language_without_one_are_told(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS, installers={"python": OneRunInstaller()}) as rig:
        arguments = {"packages": ["six"], "index_url": "x"}
        end = await rig.end_of(rig.create(), "pkg.install", arguments)
        assert isinstance(end, ErrorEvent)
        assert isinstance(end.error, InvalidRequest)
    async with TaskRig(tmp_path / "b", TOOLS) as rig:
        end = await rig.end_of(rig.create(), "pkg.install", {"packages": ["six"]})
        assert isinstance(end, ErrorEvent)
        assert isinstance(end.error, NotImplementedYet)


class Tool:
    """Runs what the test gives it."""

    spec = ToolSpec(
        name="probe",
        title="Probe",
        description="For tests.",
        arguments=ToolModel,
        result=ToolModel,
        runs_code=True,
    )

    def __init__(self, body) -> None:  # type: ignore[no-untyped-def]
        self._body = body

    async def run(self, ctx: ToolContext, arguments: ToolModel) -> ToolResult:
        return await self._body(ctx)  # type: ignore[no-any-return]


async def test_a_tool_that_swallows_its_cancel_is_stopped_at_shutdown(tmp_path: Path) -> None:
    swallowed = asyncio.Event()

    async def body(ctx: ToolContext) -> ToolResult:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()
        raise AssertionError

    rig = TaskRig(tmp_path, {"probe": Tool(body)}, config=TaskConfig(stop_wait_s=0.05))
    async with rig:
        session = rig.create()
        task_id = await rig.submit(session, "probe", {})
        reading = asyncio.ensure_future(rig.follow(session, task_id))
        while rig.tasks.status(task_id, session.session_id).state != "running":
            await asyncio.sleep(0)
        await rig.tasks.stop()
        assert swallowed.is_set()
        end = (await reading)[-1]
        assert isinstance(end, ResultEvent)
        assert end.status is TaskStatus.CANCELLED


async def test_a_tool_that_dawdles_after_its_cancelled_run_is_cut_off(tmp_path: Path) -> None:
    async def body(ctx: ToolContext) -> ToolResult:
        outcome = await ctx.run(Command(program=Argv(("true",)), limits=ctx.limits))
        assert outcome.ended_by is EndedBy.CANCELLED
        assert (ctx.session_id, ctx.task_id) == (session.session_id, task_id)
        await asyncio.Event().wait()
        raise AssertionError

    async with TaskRig(tmp_path, {"probe": Tool(body)}, config=TaskConfig(absorb_s=0.02)) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "probe", {})
        await rig.sandboxes[session.session_id].play(0)
        assert await rig.tasks.cancel(task_id, session.session_id, "") == (True, "running")
        assert rig.tasks.status(task_id, session.session_id).state == "finished"


async def test_a_tool_whose_run_was_lost_with_the_sandbox_says_so(tmp_path: Path) -> None:
    lost = Outcome(ended_by=EndedBy.WORKER_LOST, exit_code=137, sandbox_lost=True, remedy="again")

    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", {"code": "1"})
        (await rig.sandboxes[session.session_id].play(0)).finish(lost)
        end = (await rig.follow(session, task_id))[-1]
        assert isinstance(end, ResultEvent)
        assert end.metadata.ended_by is EndedBy.WORKER_LOST
        assert end.status is TaskStatus.FAILURE


async def lagging(rig: TaskRig, expire: bool) -> list[TaskEvent]:
    """Destroy a session whose reader has much left to read, on disk."""
    session = rig.create()
    task_id = await rig.submit(session, "run.python", {"code": "1"})
    reader = rig.tasks.events(task_id, session.session_id)
    play = await rig.sandboxes[session.session_id].play(0)
    await play.print(Stream.STDOUT, b"x" * 64 * KIB)
    events = [await anext(reader)]
    for _ in range(30):
        await play.print(Stream.STDOUT, b"x" * 64 * KIB)
    if expire:
        rig.ledger.book(session.session_id, session.directory).spools.clear()
    else:
        await rig.destroy(session.session_id)
    return events + [event async for event in reader]


async def test_a_reader_that_lags_behind_a_destroyed_session_is_still_told_the_end(
    tmp_path: Path,
) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        events = await lagging(rig, expire=False)
        end = events[-1]
        assert isinstance(end, ResultEvent)
        assert end.status is TaskStatus.CANCELLED
        assert end.metadata.stdout_bytes == 31 * 64 * KIB


async def test_a_reader_whose_output_was_dropped_under_it_is_told_that(tmp_path: Path) -> None:
    config = TaskConfig(output=OutputConfig(segment_bytes=64 * KIB))
    async with TaskRig(tmp_path, TOOLS, config=config) as rig:
        with pytest.raises(WrongState) as refused:
            await lagging(rig, expire=True)
        assert refused.value.reason == "OUTPUT_EXPIRED"
