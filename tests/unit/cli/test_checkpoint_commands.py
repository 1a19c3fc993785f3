"""codegen-mcp checkpoints and sessions fork, over an engine in memory behind a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import asynccontextmanager

import click
import pytest
import structlog.testing
from click.testing import CliRunner, Result

from codegen_mcp.cli.asking import printable, size
from codegen_mcp.cli.checkpoints import Reach, checkpoints
from codegen_mcp.cli.sessions import sessions
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.testing.memory_checkpoints import MemoryCheckpoints
from codegen_mcp.testing.memory_engine import MemoryEngine
from codegen_mcp.testing.wire import MemoryWorker, memory_worker


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep what the server logs out of the output, which is the whole process's."""
    with structlog.testing.capture_logs():
        yield


async def cli(worker: MemoryWorker, *arguments: str, group: click.Group = checkpoints) -> Result:
    """Run a command in a thread, as it has an event loop of its own."""
    reach = Reach(open_store=opener(worker.engine.checkpoints)) if group is checkpoints else None
    return await asyncio.to_thread(
        CliRunner().invoke, group, ["--address", worker.address, *arguments], obj=reach
    )


def opener(kept: MemoryCheckpoints):
    @asynccontextmanager
    async def open_store(settings):
        yield kept

    return open_store


async def test_a_session_is_saved_shown_restored_and_forgotten():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        none = await cli(worker, "ls")
        saved = await cli(worker, "create", session_id, "--name", "before")
        checkpoint_id = saved.stdout.strip()
        listed = await cli(worker, "ls", session_id)
        shown = await cli(worker, "show", checkpoint_id)
        restored = await cli(worker, "restore", checkpoint_id)
        made = worker.engine.sessions.get(restored.stdout.strip())
        removed = await cli(worker, "rm", checkpoint_id)
        left = await worker.engine.checkpoints.list()
    assert "no checkpoints" in none.stdout
    assert checkpoint_id in listed.stdout
    assert "before" in listed.stdout
    assert session_id in shown.stdout
    assert "before" in shown.stdout
    assert made.restored_from == checkpoint_id
    assert removed.exit_code == 0
    assert left == []


async def test_every_command_speaks_json():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        write = worker.engine.sessions.workspace(session_id).write
        await write("a.txt", b"1", create_dirs=False, mode=None)
        created = await told(worker, "create", session_id)
        checkpoint_id = created["checkpoint_id"]
        await write("a.txt", b"2", create_dirs=False, mode=None)
        listed = await told(worker, "ls")
        shown = await told(worker, "show", checkpoint_id)
        restored = await told(worker, "restore", checkpoint_id, "--in-place")
        verified = await told(worker, "verify")
        removed = await told(worker, "rm", checkpoint_id)
        forked = json.loads(
            (await cli(worker, "fork", session_id, "-n", "2", "--json", group=sessions)).stdout
        )
        alive = {view.session_id for view in worker.engine.sessions.list()}
    assert [one["checkpoint_id"] for one in listed] == [checkpoint_id]
    assert shown == created == restored["checkpoint"]
    assert created["modified_files"] == ["a.txt"]
    assert restored["sandbox_id"] == session_id
    assert checkpoint_id in restored["lost"]
    assert verified["ok"]
    assert [one["checkpoint_id"] for one in verified["checkpoints"]] == [checkpoint_id]
    assert removed == {"deleted": [checkpoint_id]}
    assert {session_id, *forked["session_ids"]} == alive
    assert len(forked["session_ids"]) == 2


async def told(worker: MemoryWorker, *arguments: str):
    result = await cli(worker, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def test_verify_fails_when_a_checkpoint_is_damaged_and_names_it():
    async with memory_worker() as worker:
        one, two = [
            (await worker.engine.checkpoints.save(await worker.wire.session())).checkpoint_id
            for _ in range(2)
        ]
        sound = await cli(worker, "verify")
        worker.engine.checkpoints.damage(str(two))
        damaged = await cli(worker, "verify")
        as_json = await cli(worker, "verify", "--json")
        other = await cli(worker, "verify", one.session_id)
    assert (sound.exit_code, other.exit_code) == (0, 0)
    assert "2 checkpoints" in sound.stdout
    assert damaged.exit_code == as_json.exit_code == 1
    assert f"DAMAGED {two}" in damaged.stdout
    assert str(one) not in damaged.stdout
    assert not json.loads(as_json.stdout)["ok"]


async def test_an_exported_checkpoint_is_taken_in_by_another_worker(tmp_path):
    async with memory_worker() as worker, MemoryEngine([]) as other:
        session_id = await worker.wire.session()
        await worker.engine.sessions.workspace(session_id).write(
            "a.txt", b"1", create_dirs=False, mode=None
        )
        checkpoint_id = str((await worker.engine.checkpoints.save(session_id)).checkpoint_id)
        file = tmp_path / "one.tar.gz"
        exported = await cli(worker, "export", checkpoint_id, str(file), "--json")
        again = await cli(worker, "export", checkpoint_id, str(file))
        here = await cli(worker, "import", str(file))
        reach = Reach(open_store=opener(other.checkpoints))
        there = await asyncio.to_thread(
            CliRunner().invoke, checkpoints, ["import", str(file)], obj=reach
        )
        restored = await other.checkpoints.restore(checkpoint_id, create_new_session=True)
        files = other.sessions.workspace(restored.session_id).entries
    assert json.loads(exported.stdout)["bytes"] == file.stat().st_size
    assert again.exit_code == here.exit_code == 1
    assert "is there already" in again.output
    assert "is here already" in here.output
    assert there.stdout == f"{checkpoint_id}\n"
    assert files[b"a.txt"].data == b"1"


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x1f\x8b" + b"\0" * 40])
async def test_a_file_that_is_no_export_is_refused_in_one_line(tmp_path, content):
    file = tmp_path / "x.tar.gz"
    file.write_bytes(content)
    async with memory_worker() as worker:
        result = await cli(worker, "import", str(file))
        left = await worker.engine.checkpoints.list()
    assert result.exit_code == 1
    assert "export it again" in result.output
    assert left == []


async def test_errors_are_one_line_that_says_what_to_do_next():
    nobody = f"ses_{'0' * 32}"
    async with memory_worker() as worker:
        results = [
            await cli(worker, "show", f"{nobody}.1.1"),
            await cli(worker, "restore", "nonsense"),
            await cli(worker, "rm", "nonsense"),
            await cli(worker, "export", "nonsense"),
            await cli(worker, "create", nobody),
            await cli(worker, "fork", nobody, group=sessions),
        ]
    for result in results:
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1


async def test_a_worker_that_is_not_there_is_named():
    result = await asyncio.to_thread(
        CliRunner().invoke, checkpoints, ["--address", "127.0.0.1:1", "ls"]
    )
    assert result.exit_code == 1
    assert "127.0.0.1:1" in result.output


async def test_names_that_code_chose_do_not_steer_the_terminal():
    async with memory_worker() as worker:
        view = await worker.engine.sessions.create(SessionConfig())
        await worker.engine.sessions.workspace(view.session_id).write(
            b"\x1b[2J.txt", b"", create_dirs=False, mode=None
        )
        info = await worker.engine.checkpoints.save(view.session_id)
        shown = await cli(worker, "show", str(info.checkpoint_id))
    assert "[2J.txt" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_text_for_terminals_keeps_letters_and_drops_controls():
    assert printable("höi \x07\x1b[0m\u202e") == "höi \ufffd\ufffd[0m\ufffd"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (5 * 1024**4, "5120.0 GiB"),
    ],
)
def test_sizes_are_told_in_powers_of_1024(count, text):
    assert size(count) == text
