"""Sessions on a real host: real sandboxes, volumes, groups and users, and nothing of them left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.bootstrap import Engine, open_engine
from codegen_mcp.core.limits import MIB, RunLimits
from codegen_mcp.core.session import SessionConfig, SessionState
from codegen_mcp.core.task import Command, EndedBy, Outcome, PythonCode, Stream
from codegen_mcp.settings import Settings
from codegen_mcp.testing.memory_pool import until

ROOT = os.geteuid() == 0


class Output:
    def __init__(self) -> None:
        self.data = b""

    async def write(self, stream: Stream, data: bytes) -> None:
        self.data += data

    def omit(self, stream: Stream, count: int) -> None:
        raise AssertionError("nothing is left out here")


@pytest.fixture
def state() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="codegen-sessions-", dir="/var/tmp"))
    base.chmod(0o711)
    try:
        yield base / "state"
    finally:
        left = mounts_below(base)
        for mount_point in left:
            subprocess.run(["umount", mount_point], check=True)
        shutil.rmtree(base)
    assert left == []


def settings(state: Path, **more: object) -> Settings:
    return Settings.model_validate(
        {
            "base_workspace": state,
            "max_sessions": 8,
            "pool_size": 1,
            "disk_bytes": 32 * MIB,
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
            limits = RunLimits(timeout_s=30, output_bytes=1 * MIB)
            command = Command(program=PythonCode(code.encode()), limits=limits)
            outcome = await (await session.sandbox()).run(command, output)
    return outcome, output.data.decode()


def mounts_below(path: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return [point for point in points if point.startswith(f"{path}/")]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def rested(opened: Engine) -> None:
    pool = opened.sessions
    await until(lambda: pool.warm.settled and pool.warm.depth > 0, 30)
    await pool.cleaned()


async def test_a_pooled_session_runs_code_in_its_own_files_as_its_own_user(state: Path) -> None:
    async with engine(state) as opened:
        await rested(opened)
        one, two = [
            (await opened.sessions.create(SessionConfig(env={"NAME": name}))).session_id
            for name in ("one", "two")
        ]
        assert opened.sessions.warm.hits >= 1
        for session_id, name in ((one, "one"), (two, "two")):
            code = "import os; open('f', 'w').write(os.environ['NAME']); print(os.getcwd())"
            outcome, printed = await run(opened, session_id, code)
            assert (outcome.ended_by, outcome.exit_code) == (EndedBy.EXIT, 0)
            assert printed.strip()
            read = await opened.sessions.workspace(session_id).read("f", 0, 100)
            assert read == (name.encode(), 3)
        users = {opened.sessions.session(one).identity, opened.sessions.session(two).identity}
        assert len(users) == (2 if ROOT else 1)
        if ROOT:
            owner = (opened.sessions.session(one).slot.volume.root / "workspace/f").stat().st_uid
            assert owner == opened.sessions.session(one).identity.uid != 0  # type: ignore[union-attr]
        await until(lambda: opened.sessions.get(one).usage.disk_bytes > 0, 20)
        assert opened.sessions.get(one).state is SessionState.IDLE


async def test_memory_pids_and_cpu_of_a_pooled_sandbox_are_those_that_were_asked_for(
    state: Path,
) -> None:
    async with engine(state) as opened:
        if opened.host.detection.driver is None:
            pytest.skip(f"no control groups: {opened.host.detection.fix}")
        await rested(opened)
        limits = opened.sessions.default_limits
        view = await opened.sessions.create(
            SessionConfig(limits=replace(limits, memory_bytes=64 * MIB))
        )
        assert opened.sessions.warm.hits == 1
        outcome, _ = await run(opened, view.session_id, "x = b'x' * (100 << 20)")
        assert outcome.ended_by is EndedBy.MEMORY
        outcome, printed = await run(opened, view.session_id, "print('still here')")
        assert (outcome.exit_code, printed) == (0, "still here\n")


async def test_a_killed_guest_is_replaced_and_the_files_are_kept(state: Path) -> None:
    async with engine(state) as opened:
        view = await opened.sessions.create(SessionConfig())
        session = opened.sessions.session(view.session_id)
        await run(opened, view.session_id, "open('f', 'w').write('kept')")
        processes = (await session.sandbox()).processes()
        assert processes
        for pid in processes:
            with suppress(ProcessLookupError):  # it went with one before it
                os.kill(pid, signal.SIGKILL)
        await until(lambda: session.state is SessionState.FAILED)
        await until(lambda: not any(map(alive, processes)))
        outcome, printed = await run(opened, view.session_id, "print(open('f').read())")
        assert (outcome.exit_code, printed) == (0, "kept\n")
        assert session.state is SessionState.IDLE
        assert "replaced" in opened.sessions.get(view.session_id).note


async def test_a_destroyed_session_leaves_nothing_however_deep_and_locked_its_files_are(
    state: Path,
) -> None:
    hostile = """
import os
os.mkdir('locked'); open('locked/f', 'w').close(); os.chmod('locked', 0)
os.symlink('/etc', 'link')
os.mkfifo('fifo')
for _ in range(1500):
    os.mkdir('d' * 100)
    os.chdir('d' * 100)
"""
    async with engine(state, volume="plain") as opened:
        view = await opened.sessions.create(SessionConfig())
        outcome, _ = await run(opened, view.session_id, hostile)
        assert outcome.exit_code == 0
        session = opened.sessions.session(view.session_id)
        processes = (await session.sandbox()).processes()
        cgroup = session.slot.cgroup
        await opened.sessions.destroy(view.session_id, force=True)
        assert not any(map(alive, processes))
        await opened.sessions.cleaned()
        assert list((state / "trash").iterdir()) == []
        assert list((state / "sessions").iterdir()) == []
        if cgroup is not None:
            assert not any(path.parent.exists() for path in cgroup.attach_files)


async def test_many_sessions_one_after_the_other_leave_nothing(state: Path) -> None:
    async with engine(state) as opened:
        await rested(opened)
        before = 0
        for number in range(15):
            view = await opened.sessions.create(SessionConfig())
            outcome, _ = await run(opened, view.session_id, "print(1)")
            assert outcome.exit_code == 0
            await opened.sessions.destroy(view.session_id, force=number % 2 == 0)
            if number == 4:
                await rested(opened)
                before = descriptors()
        await rested(opened)
        assert descriptors() <= before
        assert len(mounts_below(state)) <= opened.sessions.warm.depth


async def test_the_next_start_adopts_sessions_with_their_files_and_users(state: Path) -> None:
    async with engine(state, keep=True) as opened:
        view = await opened.sessions.create(
            SessionConfig(env={"A": "1"}, metadata={"k": "v"}, workspace_id="w")
        )
        await run(opened, view.session_id, "open('f', 'w').write('kept')")
        user = opened.sessions.session(view.session_id).identity
    assert mounts_below(state) == []
    async with engine(state) as opened:
        again = opened.sessions.get(view.session_id)
        assert (again.incarnation, again.metadata, again.workspace_id) == (2, {"k": "v"}, "w")
        assert opened.sessions.session(view.session_id).identity == user
        code = "import os; print(open('f').read(), os.environ['A']); open('f', 'a').write('!')"
        outcome, printed = await run(opened, view.session_id, code)
        assert (outcome.exit_code, printed) == (0, "kept 1\n")


@pytest.mark.skipif(not ROOT, reason="only a root worker has host users to give")
async def test_files_of_a_host_user_that_cannot_be_had_again_get_another_owner(
    state: Path,
) -> None:
    async with engine(state, keep=True, volume="plain") as opened:
        view = await opened.sessions.create(SessionConfig())
        await run(opened, view.session_id, "import os; os.makedirs('a/b'); open('a/b/f', 'w')")
    directory = state / "sessions" / view.session_id
    subprocess.run(["chown", "-R", "150000:150000", directory / "volume/workspace"], check=True)
    subprocess.run(["chown", "-R", "150000:150000", directory / "volume/venv"], check=True)
    record = json.loads((directory / "session.json").read_text())
    record["identity"] = {"uid": 150000, "gid": 150000}
    (directory / "session.json").write_text(json.dumps(record))
    async with engine(state) as opened:
        code = "import os; open('a/b/f', 'w').write('mine'); print(os.stat('a/b/f').st_uid)"
        outcome, printed = await run(opened, view.session_id, code)
        assert (outcome.exit_code, printed) == (0, f"{1000}\n")
        identity = opened.sessions.session(view.session_id).identity
        assert identity is not None
        assert (directory / "volume/workspace/a/b/f").stat().st_uid == identity.uid != 150000


WORKER = """
import asyncio, os, sys
import structlog
from codegen_mcp.sandbox import mounts
if os.geteuid() == 0:
    mounts.enter_private_namespace()  # as every worker does
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from codegen_mcp.bootstrap import open_engine
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.core.limits import RunLimits
from codegen_mcp.core.task import Command, PythonCode
from codegen_mcp.settings import Settings

class Output:
    async def write(self, stream, data):
        pass
    def omit(self, stream, count):
        pass

async def main():
    settings = Settings.model_validate_json(sys.argv[1])
    async with open_engine(settings) as engine:
        runs = []
        pids = []
        for number in range(3):
            view = await engine.sessions.create(SessionConfig(metadata={"number": str(number)}))
            session = engine.sessions.session(view.session_id)
            sandbox = await session.sandbox()
            code = f"open('f', 'w').write('{number}'); open('g', 'w').close()"
            code += "; import time; time.sleep(600)"
            limits = RunLimits(timeout_s=600, output_bytes=1 << 20)
            command = Command(program=PythonCode(code.encode()), limits=limits)
            runs.append(asyncio.create_task(sandbox.run(command, Output())))
            while True:
                try:
                    await session.workspace.stat("g")
                    break
                except Exception:
                    await asyncio.sleep(0.01)
            pids += sandbox.processes()
            print(view.session_id, flush=True)
        print(*pids, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_worker_that_was_killed_leaves_sessions_to_adopt_and_nothing_that_runs(
    state: Path,
) -> None:
    asked = settings(state).model_dump_json(by_alias=True)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert worker.stdout is not None
    try:
        async with asyncio.timeout(60):
            ids = [(await worker.stdout.readline()).decode().strip() for _ in range(3)]
            pids = [int(pid) for pid in (await worker.stdout.readline()).split()]
    finally:
        worker.kill()
        await worker.wait()
    assert all(ids)
    assert pids
    await until(lambda: not any(map(alive, pids)), 5)
    async with engine(state) as opened:
        assert [view.session_id for view in opened.sessions.list()] == ids
        for number, session_id in enumerate(ids):
            assert opened.sessions.get(session_id).incarnation == 2
            outcome, printed = await run(opened, session_id, "print(open('f').read())")
            assert (outcome.exit_code, printed) == (0, f"{number}\n")
        assert opened.sessions.adoption.deleted == opened.sessions.adoption.left == []
