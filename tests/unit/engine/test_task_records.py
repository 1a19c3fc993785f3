"""Repeated requests, sequences, and what is left of tasks after a crash."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from codegen_mcp.core.errors import (
    AlreadyExists,
    Full,
    NotFound,
    OutcomeUnknown,
    PathEscape,
    WrongState,
)
from codegen_mcp.core.limits import KIB, MIB
from codegen_mcp.core.task import EndedBy, Stream, TaskStatus
from codegen_mcp.engine.base import Constraints, ErrorEvent, OutputEvent, ResultEvent, TaskEvent
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.task_config import TaskConfig
from codegen_mcp.testing.task_rig import TaskRig
from codegen_mcp.tools.registry import tools_by_name

TOOLS = tools_by_name()
CODE = {"code": "print(1)"}


def result_of(event: TaskEvent) -> ResultEvent:
    assert isinstance(event, ResultEvent), event
    return event


async def finish_run(rig: TaskRig, session: Session, number: int, printed: bytes) -> None:
    play = await rig.sandboxes[session.session_id].play(number)
    await play.print(Stream.STDOUT, printed)
    play.finish()


async def test_a_repeated_request_joins_the_task_that_runs_and_later_replays_it(
    tmp_path: Path,
) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        for _ in range(2):
            await rig.submit(session, "run.python", CODE, task_id="t", sequence=1)
        both = [asyncio.ensure_future(rig.follow(session, "t")) for _ in range(2)]
        await asyncio.sleep(0)
        await finish_run(rig, session, 0, b"once\n")
        one, two = await asyncio.gather(*both)
        assert one == two
        arguments = json.dumps(CODE)  # the same content, otherwise written
        await rig.submit(session, "run.python", arguments, task_id="t", sequence=1)
        assert await rig.follow(session, "t") == one
        assert len(rig.sandboxes[session.session_id].plays) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"arguments": {"code": "print(2)"}},
        {"tool": "run.shell", "arguments": {"command": "ls"}},
        {"env": {"A": "b"}},
        {"constraints": Constraints(timeout_s=7)},
        {"sequence": 2},
    ],
)
async def test_an_id_used_again_with_other_content_is_refused(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        first = {"tool": "run.python", "arguments": CODE, "task_id": "t", "sequence": 1}
        await rig.submit(session, **first)  # type: ignore[arg-type]
        with pytest.raises(AlreadyExists, match="'t'"):
            await rig.submit(session, **{**first, **changed})  # type: ignore[arg-type]


async def test_the_same_id_in_two_sessions_is_two_tasks(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        one, two = rig.create(), rig.create()
        await rig.end_of(one, "echo", {"message": "1"}, task_id="t")
        end = result_of(await rig.end_of(two, "echo", {"message": "2"}, task_id="t"))
        assert end.value == TOOLS["echo"].spec.result(message="2")


async def test_a_sequence_belongs_to_one_task(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS, config=TaskConfig(records=2)) as rig:
        session = rig.create()
        for number in range(1, 5):
            await rig.end_of(session, "echo", task_id=f"t{number}", sequence=number)
        with pytest.raises(AlreadyExists) as taken:
            await rig.submit(session, "echo", task_id="other", sequence=4)
        assert taken.value.metadata == {"task_id": "t4", "last_sequence": "4"}
        with pytest.raises(OutcomeUnknown, match="go on with 5"):
            await rig.submit(session, "echo", task_id="t1", sequence=1)
        with pytest.raises(NotFound):
            rig.tasks.status("t1", session.session_id)
        result_of(await rig.end_of(session, "echo", task_id="untracked"))
        result_of(await rig.end_of(session, "echo", task_id="gap", sequence=9))
        with pytest.raises(OutcomeUnknown):
            await rig.submit(session, "echo", task_id="late", sequence=7)


async def test_results_are_kept_up_to_a_size_and_large_ones_on_disk_only(tmp_path: Path) -> None:
    config = TaskConfig(record_bytes=200 * KIB, memory_bytes=1)
    async with TaskRig(tmp_path, TOOLS, config=config) as rig:
        session = rig.create()
        text = "é" * 25 * KIB
        for number in range(8):
            await rig.end_of(session, "echo", {"message": text}, task_id=f"t{number}")
        kept = [view.task_id for view in rig.tasks.list(session.session_id)]
        assert kept == ["t7", "t6", "t5"]
        events = await rig.follow(session, "t5")
        assert result_of(events[-1]).value == TOOLS["echo"].spec.result(message=text)


async def test_the_journal_is_compacted_and_nothing_kept_is_lost(tmp_path: Path) -> None:
    config = TaskConfig(record_bytes=300 * KIB, memory_bytes=1)
    async with TaskRig(tmp_path, TOOLS, config=config) as rig:
        session = rig.create("ses_a")
        running = await rig.submit(session, "run.python", CODE, task_id="running", sequence=1)
        text = "x" * 100 * KIB
        journal = session.directory / "tasks.jsonl"
        sizes = []
        for number in range(40):
            async with asyncio.timeout(30):  # a rewrite that is under way ends before the next task
                while sizes and journal.stat().st_size > MIB + 800 * KIB:
                    await asyncio.sleep(0)
            arguments = {"message": f"{number} {text}"}
            await rig.end_of(session, "echo", arguments, task_id=f"t{number}", sequence=number + 2)
            sizes.append(journal.stat().st_size)
            assert result_of((await rig.follow(session, f"t{number}"))[-1]).value
        assert max(sizes) < 2 * MIB + 300 * KIB
        while rig.tasks.active > 1:
            await asyncio.sleep(0)
        await finish_run(rig, session, 0, b"done")
        await rig.follow(session, running)
        for number in (38, 39):
            value = result_of((await rig.follow(session, f"t{number}"))[-1]).value
            assert value == TOOLS["echo"].spec.result(message=f"{number} {text}")
    async with TaskRig(tmp_path, TOOLS, config=config) as rig:
        session = rig.create("ses_a")
        value = result_of((await rig.follow(session, "t39"))[-1]).value
        assert value == TOOLS["echo"].spec.result(message=f"39 {text}")
        assert result_of((await rig.follow(session, "running"))[-1]).metadata.stdout_bytes == 4
        with pytest.raises(OutcomeUnknown):
            await rig.submit(session, "echo", task_id="t0", sequence=2)


async def crashed(tmp_path: Path, root: str) -> Path:
    """Leave a session behind in which one task is done, one failed and one was running."""
    async with TaskRig(tmp_path / root, TOOLS) as rig:
        session = rig.create("ses_a")
        await rig.submit(session, "run.python", CODE, task_id="done", sequence=1)
        await finish_run(rig, session, 0, b"half a line")
        await rig.follow(session, "done")
        await rig.end_of(session, "fs.read", {"path": "../x"}, task_id="failed", sequence=2)
        await rig.submit(session, "run.python", CODE, task_id="running", sequence=3)
        await rig.sandboxes["ses_a"].play(1)
        shutil.copytree(session.directory, tmp_path / "left" / "ses_a")
    return tmp_path / "left"


async def test_after_a_crash_finished_tasks_keep_their_answer_and_running_ones_are_lost(
    tmp_path: Path,
) -> None:
    left = await crashed(tmp_path, "first")
    for _ in range(2):  # the second worker crashes too, and a third reads what it wrote
        async with TaskRig(left, TOOLS) as rig:
            session = rig.create("ses_a")
            assert list(session.view().recent_tasks) == ["running", "failed", "done"]
            await rig.submit(session, "run.python", CODE, task_id="done", sequence=1)
            (event,) = await rig.follow(session, "done")
            done = result_of(event)
            assert done.status is TaskStatus.SUCCESS
            assert done.value is not None
            assert done.value.model_dump()["stdout"] == "half a line"
            with pytest.raises(WrongState) as refused:
                await rig.follow(session, "done", stdout_offset=3)
            assert refused.value.reason == "OUTPUT_EXPIRED"
            assert await rig.follow(session, "done", stdout_offset=11) == [event]
            (event,) = await rig.follow(session, "failed")
            assert isinstance(event, ErrorEvent)
            assert isinstance(event.error, PathEscape)
            view = rig.tasks.status("running", "ses_a")
            assert (view.state, view.status) == ("finished", TaskStatus.FAILURE)
            assert view.ended_by is EndedBy.WORKER_LOST
            (event,) = await rig.follow(session, "running", stdout_offset=5)
            assert "new task_id" in result_of(event).metadata.remedy
            # The lost one is never run again by its own retry.
            await rig.submit(session, "run.python", CODE, task_id="running", sequence=3)
            assert rig.sandboxes["ses_a"].plays == []
            with pytest.raises(AlreadyExists):
                await rig.submit(session, "echo", task_id="new", sequence=3)
            assert await rig.tasks.cancel("running", "ses_a", "") == (False, "finished")


async def test_a_journal_cut_at_any_byte_gives_no_error_and_no_wrong_answer(
    tmp_path: Path,
) -> None:
    left = await crashed(tmp_path, "first")
    whole = (left / "ses_a" / "tasks.jsonl").read_bytes()
    for cut in range(len(whole) + 1):
        root = tmp_path / f"cut{cut}"
        (root / "ses_a").mkdir(parents=True)
        (root / "ses_a" / "tasks.jsonl").write_bytes(whole[:cut])
        async with TaskRig(root, TOOLS) as rig:
            session = rig.create("ses_a")
            known = {view.task_id: view for view in rig.tasks.list("ses_a")}
            for task_id, view in known.items():
                (event,) = await rig.follow(session, task_id)
                if view.ended_by is EndedBy.WORKER_LOST:
                    continue
                if task_id == "done":
                    value = result_of(event).value
                    assert value is not None
                    assert value.model_dump()["stdout"] == "half a line"
                else:
                    assert isinstance(event, ErrorEvent)
                    assert task_id == "failed"
            # It goes on from there, and what is written then can be read again.
            sequence = len(known) + 1
            await rig.end_of(session, "echo", {"message": "m"}, task_id="n", sequence=sequence)
        async with TaskRig(root, TOOLS) as rig:
            session = rig.create("ses_a")
            assert len(rig.tasks.list("ses_a")) == len(known) + 1
            (event,) = await rig.follow(session, "n")
            assert result_of(event).value == TOOLS["echo"].spec.result(message="m")
            with pytest.raises(AlreadyExists):
                await rig.submit(session, "echo", task_id="x", sequence=sequence)


async def test_a_damaged_line_costs_only_its_task(tmp_path: Path) -> None:
    left = await crashed(tmp_path, "first")
    file = left / "ses_a" / "tasks.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], b"\0\xffgarbage\n", *lines[1:3], *lines[3:]]))
    async with TaskRig(left, TOOLS) as rig:
        rig.create("ses_a")
        assert len(rig.tasks.list("ses_a")) == 3


@pytest.mark.parametrize("content", [b'{"format":99,"last_sequence":0}\n', b"[]\n", b"{}\n"])
async def test_a_journal_of_a_newer_version_is_set_aside_not_misread(
    tmp_path: Path, content: bytes
) -> None:
    directory = tmp_path / "ses_a"
    directory.mkdir()
    (directory / "tasks.jsonl").write_bytes(content)
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create("ses_a")
        assert rig.tasks.list("ses_a") == []
        result_of(await rig.end_of(session, "echo"))
    assert (directory / "tasks.jsonl.unreadable").read_bytes() == content


async def test_output_files_of_a_dead_worker_are_removed(tmp_path: Path) -> None:
    (tmp_path / "ses_a" / "output").mkdir(parents=True)
    (tmp_path / "ses_a" / "output" / "0-0.log").write_bytes(b"old")
    async with TaskRig(tmp_path, TOOLS) as rig:
        rig.create("ses_a")
        assert not (tmp_path / "ses_a" / "output").exists()


async def test_the_journal_is_the_worker_s_own(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        await rig.end_of(session, "echo", sequence=1)
        assert (session.directory / "tasks.jsonl").stat().st_mode & 0o777 == 0o600


async def test_without_a_disk_answers_are_still_given_and_kept_in_memory(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS, config=TaskConfig(memory_bytes=1)) as rig:
        session = rig.create()
        (session.directory / "tasks.jsonl").mkdir()
        for task_id in ("a", "b"):
            await rig.end_of(session, "echo", {"message": task_id}, task_id=task_id)
        (event,) = await rig.follow(session, "a")
        assert result_of(event).value == TOOLS["echo"].spec.result(message="a")


async def test_without_a_disk_a_task_that_must_not_run_twice_is_refused(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        (session.directory / "tasks.jsonl").mkdir()
        for _ in range(session.limits.concurrent_tasks + 1):  # a refusal takes no place
            with pytest.raises(Full) as refused:
                await rig.submit(session, "run.python", CODE, task_id="t", sequence=1)
            assert refused.value.reason == "DISK_FULL"
        (session.directory / "tasks.jsonl").rmdir()
        await rig.submit(session, "run.python", CODE, task_id="t", sequence=1)
        await finish_run(rig, session, 0, b"once\n")
        await rig.follow(session, "t")


async def test_answers_that_a_full_disk_refused_are_written_once_there_is_room(
    tmp_path: Path,
) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        journal = session.directory / "tasks.jsonl"
        journal.mkdir()
        await rig.submit(session, "run.python", CODE, task_id="early")
        await finish_run(rig, session, 0, b"early\n")
        await rig.follow(session, "early")
        journal.rmdir()
        await rig.submit(session, "run.python", CODE, task_id="late")
        await finish_run(rig, session, 1, b"late\n")
        await rig.follow(session, "late")
        lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    ended = [line["end"] for line in lines if "end" in line]
    assert ended == ["early", "late"]


async def test_output_of_finished_tasks_leaves_memory(tmp_path: Path) -> None:
    config = TaskConfig(output=OutputConfig(finished_memory_bytes=10 * KIB))
    async with TaskRig(tmp_path, TOOLS, config=config) as rig:
        session = rig.create()
        for number in range(4):
            await rig.submit(session, "run.python", CODE, task_id=f"t{number}")
            await finish_run(rig, session, number, b"%d" % number * 8 * KIB)
            await rig.follow(session, f"t{number}")
        while rig.tasks.active:
            await asyncio.sleep(0)
        book = rig.ledger.book(session.session_id, session.directory)
        held = sum(task.output.memory_bytes for task in book if task.output is not None)
        assert held <= 10 * KIB
        for number in range(4):
            events = await rig.follow(session, f"t{number}", stdout_offset=0)
            data = b"".join(event.data for event in events if isinstance(event, OutputEvent))
            assert data == b"%d" % number * 8 * KIB


async def test_a_journal_that_cannot_be_compacted_stays_as_it_is(tmp_path: Path) -> None:
    config = TaskConfig(record_bytes=100 * KIB, memory_bytes=1)
    async with TaskRig(tmp_path, TOOLS, config=config) as rig:
        session = rig.create("ses_a")
        (session.directory / "tasks.new").mkdir()
        for number in range(30):
            arguments = {"message": str(number) * 60 * KIB}
            await rig.end_of(session, "echo", arguments, task_id=f"t{number}", sequence=number + 1)
        (event,) = await rig.follow(session, "t29")
        assert result_of(event).value is not None
        assert (session.directory / "tasks.jsonl").stat().st_size > 2 * MIB
    async with TaskRig(tmp_path, TOOLS, config=config) as rig:
        session = rig.create("ses_a")
        (event,) = await rig.follow(session, "t29")
        assert result_of(event).value is not None


async def test_what_ends_while_the_journal_is_compacted_is_found_afterwards(
    tmp_path: Path,
) -> None:
    config = TaskConfig(record_bytes=100 * KIB, memory_bytes=1)
    async with TaskRig(tmp_path, TOOLS, config=config) as rig:
        session = rig.create("ses_a")
        await rig.submit(session, "run.python", CODE, task_id="slow")
        play = await rig.sandboxes["ses_a"].play(0)
        number = compactions = 0
        size = 0
        while compactions < 2:
            arguments = {"message": "x" * 60 * KIB}
            names = [f"t{number}", f"u{number}"]
            for name in names:  # together, so that one ends while the other tidies up
                await rig.submit(session, "echo", {**arguments}, task_id=name)
            for name in names:
                (event,) = await rig.follow(session, name)
                assert result_of(event).value == TOOLS["echo"].spec.result(**arguments)
            number += 1
            now = (session.directory / "tasks.jsonl").stat().st_size
            compactions += now < size
            size = now
        play.finish()
        await rig.follow(session, "slow")
    async with TaskRig(tmp_path, TOOLS, config=config) as rig:
        rig.create("ses_a")
        assert rig.tasks.status("slow", "ses_a").status is TaskStatus.SUCCESS


async def test_a_short_answer_that_may_be_repeated_is_kept_in_memory_alone(tmp_path: Path) -> None:
    async with TaskRig(tmp_path, TOOLS) as rig:
        session = rig.create()
        await rig.end_of(session, "echo", {"message": "short"}, task_id="a")
        assert not (session.directory / "tasks.jsonl").exists()
        (event,) = await rig.follow(session, "a")
        assert result_of(event).value == TOOLS["echo"].spec.result(message="short")
        await rig.end_of(session, "echo", {"message": "x" * 20_000}, task_id="b")
        assert b'"b"' in (session.directory / "tasks.jsonl").read_bytes()
