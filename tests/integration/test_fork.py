"""Forks on a real host: real volumes, sandboxes, groups and users, and nothing of them left."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from codegen_mcp.bootstrap import Engine, open_engine
from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.limits import MIB, RunLimits
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.core.task import Command, EndedBy, Outcome, PythonCode, Stream
from codegen_mcp.sandbox.state_lock import worker_token
from codegen_mcp.sandbox.volumes import loop
from codegen_mcp.sandbox.volumes.space import VolumeConfig
from codegen_mcp.settings import Settings
from codegen_mcp.testing.kernel_objects import nothing_left
from codegen_mcp.testing.memory_pool import until
from codegen_mcp.testing.tree_facts import tree_facts

ROOT = os.geteuid() == 0
SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
KILLS = 60 if SOAK else 1
KINDS = ["loop", "plain"] if ROOT else ["plain"]
TREE = """
import os, hashlib
for number in range(300):
    os.makedirs(f"d{number % 20}", exist_ok=True)
    open(f"d{number % 20}/{number}", "wb").write(os.urandom(number * 101))
open("big", "wb").write(os.urandom(1 << 20) * 6)
os.link("big", "d1/same")
os.symlink("../big", "d2/link")
os.mkfifo("fifo")
os.chmod("d3", 0o500)
with open("sparse", "wb") as file:
    file.seek(10 << 20)
    file.write(b"end")
open("/venv/mark", "w").write("environment")
"""


class Output:
    def __init__(self) -> None:
        self.data = b""

    async def write(self, stream: Stream, data: bytes) -> None:
        self.data += data

    def omit(self, stream: Stream, count: int) -> None:
        raise AssertionError("nothing is left out here")


@pytest.fixture
def state() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="codegen-fork-", dir="/var/tmp"))
    base.chmod(0o711)
    try:
        (base / "state").mkdir(mode=0o711)
        with nothing_left(base, worker_token(base / "state")):
            yield base / "state"
    finally:
        shutil.rmtree(base)


async def check_kind(kind: str, state: Path) -> None:
    if kind == "loop":
        config = VolumeConfig(state_directory=state.parent, reserve_bytes=0)
        if reason := await loop.probe(config):
            pytest.skip(reason)


def settings(state: Path, **more: object) -> Settings:
    return Settings.model_validate(
        {
            "base_workspace": state,
            "max_sessions": 12,
            "pool_size": 0,
            "disk_bytes": 24 * MIB,
            "memory_bytes": 128 * MIB,
            "disk_reserve_bytes": 0,
            "require_isolation": "process-bare",
            **more,
        }
    )


@asynccontextmanager
async def engine(state: Path, *, keep: bool = False, **more: object) -> AsyncIterator[Engine]:
    async with open_engine(settings(state, **more), keep_sessions=keep) as opened:
        yield opened


async def run(opened: Engine, session_id: str, code: str) -> tuple[Outcome, str]:
    session = opened.sessions.session(session_id)
    with session.activity():
        async with session.run_slot():
            output = Output()
            limits = RunLimits(timeout_s=60, output_bytes=1 * MIB)
            command = Command(program=PythonCode(code.encode()), limits=limits)
            outcome = await (await session.sandbox()).run(command, output)
    return outcome, output.data.decode()


async def printed(opened: Engine, session_id: str, code: str) -> str:
    outcome, output = await run(opened, session_id, code)
    assert outcome.exit_code == 0, output
    return output.strip()


async def parent_of(opened: Engine) -> str:
    view = await opened.sessions.create(SessionConfig(env={"NAME": "parent"}, metadata={"k": "v"}))
    await printed(opened, view.session_id, TREE)
    return view.session_id


def facts(opened: Engine, session_id: str) -> list[object]:
    root = opened.sessions.session(session_id).slot.volume.root
    return [tree_facts(root / part) for part in ("workspace", "venv")]


async def fork(opened: Engine, parent: str, count: int) -> list[str]:
    return [view.session_id for view in await opened.sessions.fork(parent, count)]


@pytest.mark.parametrize("kind", KINDS)
async def test_eight_children_have_the_files_and_are_on_their_own(state: Path, kind: str) -> None:
    await check_kind(kind, state)
    async with engine(state, volume=kind) as opened:
        parent = await parent_of(opened)
        before = facts(opened, parent)
        children = await fork(opened, parent, 8)
        family = [parent, *children]
        assert len(set(family)) == 9
        for one in family:
            assert facts(opened, one) == before
        sessions = [opened.sessions.session(one) for one in family]
        if ROOT:
            owners = {
                session.slot.volume.root.joinpath("workspace/big").stat().st_uid
                for session in sessions
            }
            assert owners == {session.identity.uid for session in sessions if session.identity}
            assert len(owners) == 9
        groups = [session.slot.cgroup for session in sessions]
        assert groups == [None] * 9 or len(set(groups)) == 9
        some = [parent, children[0], children[1], children[7]]
        randomness = [await printed(opened, one, write_and_show(one)) for one in some]
        for column in zip(*(line.split() for line in randomness), strict=True):
            assert len(set(column)) == 4
        await opened.sessions.destroy(parent, force=True)
        assert facts(opened, children[2]) == before
        for one in some[1:]:
            assert await printed(opened, one, SHOW) == f"{one} {one}"


def write_and_show(session_id: str) -> str:
    """Check variables and environment, leave a mark, print what must be random."""
    return f"""
import os, random, secrets, uuid
assert os.environ["NAME"] == "parent" and os.getcwd() == os.environ["HOME"]
assert open("/venv/mark").read() == "environment"
open("big", "r+b").write({session_id!r}.encode())
open({session_id!r}, "w").close()
print(hash("text"), random.random(), os.urandom(8).hex(), secrets.token_hex(8), uuid.uuid4())
"""


SHOW = """
import os
print(open("big", "rb").read(36).decode(), *[n for n in os.listdir() if n.startswith("ses_")])
"""


async def test_the_disk_of_a_child_is_bounded_like_the_parent_s(state: Path) -> None:
    async with engine(state) as opened:
        parent = await parent_of(opened)
        (child,) = await fork(opened, parent, 1)
        code = (
            "for number in range(100):\n"
            "    with open(f'more{number}', 'wb', buffering=0) as file:\n"
            "        for _ in range(64): file.write(b'x' * 65536)"
        )
        outcome, _ = await run(opened, child, code)
        assert EndedBy.DISK in (outcome.ended_by, *outcome.limits_hit)
        assert opened.sessions.get(child).usage.disk_bytes >= 23 * MIB
        outcome, _ = await run(opened, parent, "open('room', 'wb').write(b'x' * 1_000_000)")
        assert outcome.exit_code == 0


async def test_a_run_that_is_under_way_is_not_disturbed_and_refuses_the_fork(state: Path) -> None:
    async with engine(state) as opened:
        parent = await parent_of(opened)
        code = "import os, time; open('going', 'w').close(); time.sleep(1); print('whole')"
        running = asyncio.create_task(run(opened, parent, code))
        path = opened.sessions.session(parent).slot.volume.root / "workspace" / "going"
        await until(path.exists)
        with pytest.raises(WrongState) as caught:
            await opened.sessions.fork(parent, 1)
        assert caught.value.reason == "SESSION_BUSY"
        outcome, output = await running
        assert (outcome.exit_code, output) == (0, "whole\n")
        assert len(await fork(opened, parent, 1)) == 1


async def test_runs_and_writes_that_come_during_a_fork_are_done_and_not_in_the_child(
    state: Path,
) -> None:
    async with engine(state) as opened:
        parent = await parent_of(opened)
        before = facts(opened, parent)
        forking = asyncio.create_task(fork(opened, parent, 1))
        await asyncio.sleep(0)
        workspace = opened.sessions.workspace(parent)
        write = workspace.write("written", b"later", create_dirs=False, mode=None)
        code = "open('run', 'w').write('later'); print('ran')"
        (outcome, output), _ = await asyncio.gather(run(opened, parent, code), write)
        assert (outcome.exit_code, output) == (0, "ran\n")
        (child,) = await forking
        assert facts(opened, child) == before
        assert (await workspace.read("run", 0, 9))[0] == b"later"


async def test_an_upload_that_is_half_way_is_no_obstacle_and_no_part_of_the_child(
    state: Path,
) -> None:
    async with engine(state) as opened:
        parent = await parent_of(opened)
        before = facts(opened, parent)
        stop = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            while not stop.is_set():
                yield os.urandom(8192)
                await asyncio.sleep(0.001)

        upload = asyncio.create_task(
            opened.sessions.workspace(parent).write_chunks(
                "upload",
                chunks(),
                create_dirs=False,
                mode=None,
                expected_size=None,
                expected_sha256=None,
            )
        )
        await asyncio.sleep(0.05)
        (child,) = await fork(opened, parent, 1)
        stop.set()
        size, digest = await upload
        assert facts(opened, child) == before
        path = opened.sessions.session(parent).slot.volume.root / "workspace" / "upload"
        assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) == (
            size,
            digest,
        )


async def test_a_fork_whose_caller_leaves_leaves_nothing(state: Path) -> None:
    async with engine(state) as opened:
        parent = await parent_of(opened)
        before = facts(opened, parent)
        cancelled = 0
        for delay in (0.0, 0.02, 0.06, 0.12, 0.2):
            forking = asyncio.create_task(fork(opened, parent, 3))
            await asyncio.sleep(delay)
            forking.cancel()
            try:
                for child in await forking:
                    await opened.sessions.destroy(child, force=True)
            except asyncio.CancelledError:
                cancelled += 1
            await opened.sessions.cleaned()
            assert [path.name for path in (state / "sessions").iterdir()] == [parent]
            assert list((state / "slots").iterdir()) == []
        assert cancelled
        assert facts(opened, parent) == before


WORKER = """
import asyncio, os, sys
import structlog
from codegen_mcp.sandbox import mounts
if os.geteuid() == 0:
    mounts.enter_private_namespace()  # as every worker does
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from codegen_mcp.bootstrap import open_engine
from codegen_mcp.settings import Settings

async def main():
    async with open_engine(Settings.model_validate_json(sys.argv[1])) as engine:
        print("ready", flush=True)
        while True:
            for view in await engine.sessions.fork(sys.argv[2], 8):
                await engine.sessions.destroy(view.session_id, force=True)
            await engine.sessions.cleaned()

asyncio.run(main())
"""


@pytest.mark.soak
@pytest.mark.timeout(1800 if SOAK else 120)
@pytest.mark.parametrize("kind", KINDS if SOAK else KINDS[:1])
async def test_a_worker_killed_in_the_middle_of_a_fork_leaves_whole_sessions_only(
    state: Path, kind: str
) -> None:
    await check_kind(kind, state)
    dice = random.Random(12)
    async with engine(state, keep=True, volume=kind) as opened:
        parent = await parent_of(opened)
        before = facts(opened, parent)
    asked = settings(state, volume=kind).model_dump_json(by_alias=True)
    for _ in range(KILLS):
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, asked, parent),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert worker.stdout is not None
        try:
            async with asyncio.timeout(60):
                assert await worker.stdout.readline() == b"ready\n"
            await asyncio.sleep(dice.uniform(0.0, 1.0))
        finally:
            worker.kill()
            await worker.wait()
        async with engine(state, keep=True, volume=kind) as opened:
            adoption = opened.sessions.adoption
            assert adoption.left == []
            assert adoption.deleted == []
            found = [view.session_id for view in opened.sessions.list()]
            assert parent in found
            for session_id in found:
                assert facts(opened, session_id) == before
                if session_id != parent:
                    await opened.sessions.destroy(session_id, force=True)
            await opened.sessions.cleaned()
            assert list((state / "slots").iterdir()) == []
            assert list((state / "trash").iterdir()) == []
    async with engine(state, volume=kind):
        pass
