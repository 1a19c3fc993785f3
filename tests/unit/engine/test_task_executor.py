"""Tasks from admission to their end, over real sessions with scripted sandboxes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from codegen_mcp.core.errors import (
    Full,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    UnknownTool,
    WorkerError,
    WrongState,
)
from codegen_mcp.core.limits import KIB, MIB, ResourceLimits, Usage
from codegen_mcp.core.session import SessionState
from codegen_mcp.core.task import EndedBy, Outcome, Stream, TaskStatus
from codegen_mcp.engine.base import (
    Constraints,
    ErrorEvent,
    OutputEvent,
    ProgressEvent,
    ResultEvent,
    TaskEvent,
)
from codegen_mcp.engine.hooks import NoHooks
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.task_config import TaskConfig
from codegen_mcp.testing.task_rig import TaskRig
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec
from codegen_mcp.tools.echo import EchoArguments
from codegen_mcp.tools.registry import tools_by_name

TOOLS = tools_by_name()
CODE = {"code": "print(1)"}


class NoArguments(ToolModel):
    """None."""


class Answer(ToolModel):
    """Some text."""

    text: str = ""


class Probe:
    """A tool that does what a test passes in."""

    def __init__(self, body, *, runs_code: bool = False) -> None:  # type: ignore[no-untyped-def]
        self._body = body
        self.spec = ToolSpec(
            name="probe",
            title="Probe",
            description="For tests.",
            arguments=NoArguments,
            result=Answer,
            runs_code=runs_code,
        )

    async def run(self, ctx: ToolContext, arguments: NoArguments) -> ToolResult:
        return await self._body(ctx)  # type: ignore[no-any-return]


def output_of(events: list[TaskEvent], stream: Stream) -> bytes:
    return b"".join(e.data for e in events if isinstance(e, OutputEvent) and e.stream is stream)


def result_of(event: TaskEvent) -> ResultEvent:
    assert isinstance(event, ResultEvent), event
    return event


def error_of(event: TaskEvent) -> Exception:
    assert isinstance(event, ErrorEvent), event
    return event.error


async def test_a_tool_that_runs_no_code_ends_by_exit_zero(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "echo", EchoArguments(message="hello"))
        (event,) = await rig.follow(session, task_id)
        result = result_of(event)
        assert result.status is TaskStatus.SUCCESS
        assert result.value is not None
        assert result.value.model_dump() == {"message": "hello"}
        assert (result.metadata.ended_by, result.metadata.exit_code) == (EndedBy.EXIT, 0)
        assert result.metadata.end_time_ms >= result.metadata.start_time_ms > 0
        view = rig.tasks.status(task_id, session.session_id)
        assert (view.state, view.status, view.ended_by) == (
            "finished",
            TaskStatus.SUCCESS,
            EndedBy.EXIT,
        )
        assert session.view().recent_tasks == (task_id,)
        assert session.state is SessionState.IDLE


@pytest.mark.parametrize("arguments", [{"message": "x"}, '{"message": "x"}'])
async def test_arguments_may_be_plain_data_or_json(
    tmp_path: Path, arguments: dict[str, str] | str
) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        end = await rig.end_of(rig.create(), "echo", arguments)
        assert result_of(end).value == TOOLS["echo"].spec.result(message="x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('{"message": ', "not JSON"),
        ('{"message": 5}', "'message' is 5"),
        ('{"massage": "x"}', "'massage' is not known; remove it (known: message)"),
        ("[]", "the whole"),
        (TOOLS["fs.list"].spec.arguments(), "pass EchoArguments"),
    ],
)
async def test_arguments_that_are_wrong_end_the_stream_and_say_what_to_do(
    tmp_path: Path, arguments: str, words: str
) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        error = error_of(await rig.end_of(rig.create(), "echo", arguments))
        assert isinstance(error, InvalidRequest)
        assert words in error.message


async def test_a_missing_field_is_named(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        error = error_of(await rig.end_of(rig.create(), "fs.read", {}))
        assert isinstance(error, InvalidRequest)
        assert "field 'path' is missing; add it" in error.message


async def test_what_is_wrong_with_the_call_is_raised_at_once(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        with pytest.raises(UnknownTool, match=r"no tool 'rm'.*echo"):
            await rig.submit(session, "rm")
        with pytest.raises(InvalidRequest, match="task_id"):
            await rig.submit(session, "echo", task_id="a b")
        with pytest.raises(InvalidRequest, match="sequence"):
            await rig.submit(session, "echo", sequence=-1)
        with pytest.raises(InvalidRequest, match="environment variable"):
            await rig.submit(session, "echo", env={"A=B": "c"})
        with pytest.raises(InvalidRequest, match="negative"):
            await rig.submit(session, "echo", constraints=Constraints(memory_bytes=-1))
        assert rig.tasks.list(session.session_id) == []
        await rig.destroy(session.session_id)
        with pytest.raises(NotFound):
            await rig.submit(session, "echo")


async def test_tools_are_also_found_by_the_name_that_models_use(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        await rig.end_of(session, "fs_write", {"path": "a", "contents": "b"})
        end = result_of(await rig.end_of(session, "fs.read", {"path": "a"}))
        assert end.tool == "fs.read"
        assert end.status is TaskStatus.SUCCESS


async def test_output_comes_before_the_one_result_and_is_in_it(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE)
        reading = asyncio.ensure_future(rig.follow(session, task_id))
        play = await rig.sandboxes[session.session_id].play(0)
        await play.print(Stream.STDOUT, b"1\n")
        await play.print(Stream.STDERR, b"warning\n")
        await play.print(Stream.STDOUT, b"2\n")
        peak = Usage(memory_peak_bytes=5 * MIB, cpu_us=70)
        play.finish(
            Outcome(
                ended_by=EndedBy.SIGNAL,
                exit_code=139,
                signal=11,
                limits_hit=(EndedBy.PIDS,),
                remedy="look at the C extension",
                duration_s=1.5,
                peak=peak,
            )
        )
        events = await reading
        assert output_of(events, Stream.STDOUT) == b"1\n2\n"
        assert output_of(events, Stream.STDERR) == b"warning\n"
        assert [e for e in events if not isinstance(e, OutputEvent)] == events[-1:]
        metadata = result_of(events[-1]).metadata
        assert result_of(events[-1]).status is TaskStatus.FAILURE
        assert (metadata.signal, metadata.exit_code, metadata.duration_ms) == (11, 139, 1500)
        assert metadata.limits_hit == (EndedBy.PIDS,)
        assert metadata.remedy == "look at the C extension"
        assert metadata.peak == peak
        assert (metadata.stdout_bytes, metadata.stderr_bytes) == (4, 8)
        # A later reader is told the same.
        again = await rig.follow(session, task_id)
        assert output_of(again, Stream.STDOUT) == b"1\n2\n"
        assert again[-1] == events[-1]


async def test_progress_is_told_in_order_and_stays_within_its_bounds(tmp_path: Path) -> None:
    async def body(ctx: ToolContext) -> ToolResult:
        for percent in (-5, 10, 200):
            await ctx.progress(percent, "s" * 10_000, "m")
        return ToolResult(Answer())

    async with TaskRig(tmp_path, {"probe": Probe(body)}) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "probe")
        events = await rig.follow(session, task_id)
        reports = [event for event in events if isinstance(event, ProgressEvent)]
        assert [report.percent for report in reports] == [0, 10, 100]
        assert {len(report.stage) for report in reports} == {4 * KIB}
        assert rig.tasks.status(task_id, session.session_id).progress == reports[-1]


async def test_code_runs_one_at_a_time_in_order_with_file_tools_beside_it(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        sandbox = rig.sandboxes[session.session_id]
        ids = [
            await rig.submit(session, "run.python", {"code": str(number)}) for number in range(3)
        ]
        first = await sandbox.play(0)
        states = [rig.tasks.status(task_id, session.session_id).state for task_id in ids]
        assert states == ["running", "queued", "queued"]
        assert session.state is SessionState.BUSY
        end = await rig.end_of(session, "echo", {"message": "beside"})
        assert result_of(end).status is TaskStatus.SUCCESS
        first.finish()
        for number in (1, 2):
            play = await sandbox.play(number)
            assert play.command.program.code == str(number).encode()  # type: ignore[union-attr]
            play.finish()
        for task_id in ids:
            await rig.follow(session, task_id)
        newest_first = [view.task_id for view in rig.tasks.list(session.session_id)]
        assert newest_first[1:] == ids[::-1]


async def test_beyond_the_session_s_and_the_worker_s_bound_tasks_are_refused(
    tmp_path: Path,
) -> None:
    limits = ResourceLimits(concurrent_tasks=2)
    async with TaskRig(tmp_path, TOOLS, limits=limits, config=TaskConfig(max_tasks=3)) as rig:
        one, two = rig.create(), rig.create()
        for _ in range(2):
            await rig.submit(one, "run.python", CODE)
        with pytest.raises(Full) as refused:
            await rig.submit(one, "echo", sequence=1)
        assert refused.value.retry_after_s
        await rig.submit(two, "run.python", CODE)
        with pytest.raises(Full, match="the worker") as refused:
            await rig.submit(two, "echo")
        assert refused.value.retry_after_s
        (await rig.sandboxes[one.session_id].play(0)).finish()
        while rig.tasks.active == 3:
            await asyncio.sleep(0)
        # A refused sequence was not used up.
        assert result_of(await rig.end_of(one, "echo", sequence=1)).status is TaskStatus.SUCCESS


async def test_an_error_of_ours_has_an_id_and_its_traceback_only_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def body(ctx: ToolContext) -> ToolResult:
        raise RuntimeError("secret detail")

    caplog.set_level(logging.INFO)
    async with TaskRig(tmp_path, {"probe": Probe(body)}) as rig:
        error = error_of(await rig.end_of(rig.create(), "probe"))
    assert isinstance(error, WorkerError)
    assert type(error) is WorkerError
    assert "secret" not in error.message
    logged = capsys.readouterr().out + caplog.text
    assert error.metadata["error_id"] in error.message
    assert error.metadata["error_id"] in logged
    assert "secret detail" in logged


async def test_an_error_of_the_tool_is_told_as_it_is(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        error = error_of(await rig.end_of(session, "fs.read", {"path": "nowhere"}))
        assert isinstance(error, NotFound)
        view = rig.tasks.list(session.session_id)[0]
        assert (view.state, view.status, view.ended_by) == ("finished", TaskStatus.FAILURE, None)


async def test_a_file_tool_that_takes_too_long_ends_as_timeout(tmp_path: Path) -> None:
    async def body(ctx: ToolContext) -> ToolResult:
        await asyncio.Event().wait()
        raise AssertionError

    async with TaskRig(tmp_path, {"probe": Probe(body)}) as rig:
        end = result_of(
            await rig.end_of(rig.create(), "probe", constraints=Constraints(timeout_s=0.02))
        )
        assert end.status is TaskStatus.TIMEOUT
        assert end.metadata.ended_by is EndedBy.TIMEOUT
        assert end.metadata.exit_code == 124
        assert "time limit" in end.metadata.remedy


async def test_a_tool_that_hides_that_it_runs_code_is_a_fault_of_ours(tmp_path: Path) -> None:
    tool = TOOLS["run.python"]

    async def body(ctx: ToolContext) -> ToolResult:
        return await tool.run(ctx, tool.spec.arguments(code="1"))

    async with TaskRig(tmp_path, {"probe": Probe(body)}) as rig:
        error = error_of(await rig.end_of(rig.create(), "probe"))
        assert "without saying runs_code" in str(error)


async def test_a_result_that_is_too_large_or_no_json_is_an_error(tmp_path: Path) -> None:
    answers = iter(["x" * 9 * MIB, "\ud800"])

    async def body(ctx: ToolContext) -> ToolResult:
        return ToolResult(Answer(text=next(answers)))

    async with TaskRig(tmp_path, {"probe": Probe(body)}) as rig:
        session = rig.create()
        assert isinstance(error_of(await rig.end_of(session, "probe")), LimitExceeded)
        assert "internal error" in str(error_of(await rig.end_of(session, "probe")))


async def test_the_session_s_and_the_task_s_variables_and_limits_reach_the_run(
    tmp_path: Path,
) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(
            session,
            "run.python",
            {"code": "1", "env_vars": {"A": "tool"}, "timeout_seconds": 30},
            env={"A": "task", "B": "task"},
            constraints=Constraints(timeout_s=5, memory_bytes=64 * MIB, output_bytes=1000),
        )
        play = await rig.sandboxes[session.session_id].play(0)
        assert play.command.env == {"A": "tool", "B": "task"}
        assert play.command.limits.timeout_s == 5
        assert play.command.limits.memory_bytes == 64 * MIB
        assert play.command.limits.output_bytes == 1000
        await play.print(Stream.STDOUT, b"x" * 1500)
        play.finish()
        events = await rig.follow(session, task_id)
        assert output_of(events, Stream.STDOUT) == b"x" * 1000
        metadata = result_of(events[-1]).metadata
        assert (metadata.stdout_bytes, metadata.stdout_omitted) == (1500, 500)


async def test_a_timeout_of_the_tool_s_caller_counts_where_the_task_has_none(
    tmp_path: Path,
) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        await rig.submit(session, "run.python", {"code": "1", "timeout_seconds": 90})
        play = await rig.sandboxes[session.session_id].play(0)
        assert play.command.limits.timeout_s == 90
        play.finish()
        error = error_of(
            await rig.end_of(session, "run.python", {"code": "1", "timeout_seconds": 1e9})
        )
        assert isinstance(error, InvalidRequest)
        assert "maximum" in error.message


async def test_a_sandbox_lost_between_runs_is_replaced_without_an_error(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        sandbox = rig.sandboxes[session.session_id]
        sandbox.lose_next = 1
        task_id = await rig.submit(session, "run.python", CODE)
        (await sandbox.play(0)).finish()
        assert result_of((await rig.follow(session, task_id))[-1]).status is TaskStatus.SUCCESS
        await sandbox.aclose()
        task_id = await rig.submit(session, "run.python", CODE)
        while rig.sandboxes[session.session_id] is sandbox:
            await asyncio.sleep(0)
        (await rig.sandboxes[session.session_id].play(0)).finish()
        assert result_of((await rig.follow(session, task_id))[-1]).status is TaskStatus.SUCCESS


async def test_hooks_hear_of_every_start_and_end(tmp_path: Path) -> None:
    heard: list[object] = []

    class Hooks(NoHooks):
        def task_started(self, *, tool: str) -> None:
            heard.append(tool)

        def task_finished(
            self, *, tool: str, status: TaskStatus, ended_by: EndedBy | None, seconds: float
        ) -> None:
            assert seconds >= 0
            heard.append((tool, status, ended_by))

    async with TaskRig(tmp_path, TOOLS, hooks=Hooks()) as rig:
        session = rig.create()
        await rig.end_of(session, "echo")
        await rig.end_of(session, "echo", "{")
    assert heard == [
        "echo",
        ("echo", TaskStatus.SUCCESS, EndedBy.EXIT),
        ("echo", TaskStatus.FAILURE, None),
    ]


async def test_attaching_asks_for_bytes_that_exist(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "echo")
        with pytest.raises(InvalidRequest):
            await rig.follow(session, task_id, stdout_offset=1)
        with pytest.raises(NotFound):
            await rig.follow(session, "nobody")
        with pytest.raises(NotFound):
            rig.tasks.status("nobody", session.session_id)
        with pytest.raises(NotFound):
            rig.tasks.status(task_id, "nowhere")


async def test_output_that_was_dropped_is_refused_by_offset_but_the_result_is_not(
    tmp_path: Path,
) -> None:
    config = TaskConfig(
        output=OutputConfig(
            memory_bytes=256 * KIB,
            finished_memory_bytes=1,
            spool_bytes=1,
            segment_bytes=64 * KIB,
        )
    )
    async with TaskRig(tmp_path, TOOLS, config=config) as rig:
        session = rig.create()
        task_id = await rig.submit(session, "run.python", CODE)
        play = await rig.sandboxes[session.session_id].play(0)
        for _ in range(16):
            await play.print(Stream.STDOUT, b"x" * 64 * KIB)
        play.finish()
        while rig.tasks.active:
            await asyncio.sleep(0)
        with pytest.raises(WrongState) as refused:
            await rig.follow(session, task_id, stdout_offset=0)
        assert refused.value.reason == "OUTPUT_EXPIRED"
        events = await rig.follow(session, task_id)
        assert result_of(events[-1]).metadata.stdout_bytes == 1 * MIB
        rest = await rig.follow(session, task_id, stdout_offset=1 * MIB)
        assert len(rest) == 1
