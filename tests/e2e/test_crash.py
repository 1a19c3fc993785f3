"""A worker killed again and again under load: nothing lives on, nothing acknowledged is lost."""

import asyncio
import hashlib
import json
import os
import random
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import common_pb2 as common
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sm
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as te
from codegen_mcp._proto.codegen.v1 import tools_pb2 as tools
from codegen_mcp.sandbox.host_processes import uids_of
from codegen_mcp.sandbox.state_lock import worker_token
from codegen_mcp.testing.driven import (
    Driven,
    descendants,
    host_user,
    processes_of,
    python,
    stat_of,
    until,
)
from codegen_mcp.testing.kernel_objects import kernel_objects
from codegen_mcp.testing.small_index import small_index, small_wheel
from codegen_mcp.testing.wire import Wire, dial
from codegen_mcp.testing.worker import WorkerProcess, start_worker_process, state_directory

MIB = 1024 * 1024
SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
KILLS = 200 if SOAK else 20
SESSIONS = 20
DEAD_WITHIN_S = 3.0
PF_EXITING = 4
"""Of the flags in proc_pid_stat(5); zombies have it too."""
MANY = 400
"""Files in one session, of which a volume of 16 MiB holds 1,000."""
SETTINGS: dict[str, Any] = {
    "max_sessions": SESSIONS + 2,
    "pool_size": 0,
    "memory_bytes": 64 * MIB,
    "disk_bytes": 16 * MIB,
}
PRINTER = """
import itertools, sys, time
for number in itertools.count():
    print(number, flush=True)
    if number % 50 == 0:
        time.sleep(0.01)
"""
SCRIBBLER = """
import itertools, os
os.makedirs("unacknowledged", exist_ok=True)
for number in itertools.count():
    with open(f"unacknowledged/{number % 50}", "wb") as file:
        file.write(os.urandom(8192))
"""
HASHES = """
import hashlib, json, pathlib
root = pathlib.Path("acknowledged")
files = {
    str(path): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in root.rglob("*") if path.is_file()
}
print(json.dumps(files))
"""

pytestmark = [pytest.mark.usefixtures("kernel_limits"), pytest.mark.timeout(3600 if SOAK else 300)]


@dataclass
class Known:
    """What a session was told, over all incarnations."""

    id: str
    files: dict[str, str] = field(default_factory=dict)
    """Path to the sha256 that was acknowledged."""
    packages: set[str] = field(default_factory=set)
    sequence: int = 0
    answer: tuple[te.TaskRequest, te.TaskResult] | None = None
    """The last task that ended."""
    running: te.TaskRequest | None = None
    """What printed or wrote when the worker died."""
    seen: bool = False
    """Whether some of its output came, so that it was certainly taken."""

    def next(self) -> int:
        self.sequence += 1
        return self.sequence


async def test_what_a_killed_worker_acknowledged_is_kept_and_all_else_ends():
    wheels = {f"small{n}-1.0-py3-none-any.whl": small_wheel(f"small{n}") for n in range(KILLS)}
    dice = random.Random(20)
    with small_index(wheels) as index:
        async with state_directory() as state:
            settings = {**SETTINGS, "package_index_urls": index}
            worker = await start_worker_process(state, **settings)
            try:
                async with dial(worker.address) as wire:
                    made = await asyncio.gather(*(wire.session() for _ in range(SESSIONS)))
                    known = [Known(session_id) for session_id in made]
                    await asyncio.gather(*(check_one(wire, one, 1) for one in known))
                for number in range(KILLS):
                    async with dial(worker.address) as wire:
                        await live_and_die(worker, wire, known, number, dice)
                    worker = await start_worker_process(state, **settings)
                    async with dial(worker.address) as wire:
                        await check_adopted(wire, known, number + 2)
                assert any(one.packages for one in known)
                assert sum(len(one.files) for one in known) > KILLS * SESSIONS
                async with dial(worker.address) as wire:
                    await asyncio.gather(*(read_through_worker(wire, one) for one in known))
            finally:
                if worker.process.returncode is not None:  # the next one clears what it left
                    worker = await start_worker_process(state, **settings)
                await worker.stop()
            assert "Traceback" not in worker.log, worker.log
            token = worker_token(state)
            await until(lambda: not kernel_objects(state, token))
            assert kernel_objects(state, token) == []


async def live_and_die(
    worker: WorkerProcess, wire: Wire, known: list[Known], number: int, dice: random.Random
) -> None:
    """Use every session, kill the worker in the middle, see that nothing survives it."""
    sessions = [Driven(wire, one.id) for one in known]
    await asyncio.gather(*map(finish_one, sessions, known, [number] * SESSIONS))
    uids = {host_user(worker.state, one.id) for one in known}
    assert len(uids) == SESSIONS
    lives = [
        asyncio.ensure_future(ROLES[(place + number) % len(ROLES)](session, one, number))
        for place, (session, one) in enumerate(zip(sessions, known, strict=True))
    ]
    if number % 5 == 1:  # else the kill comes before any install has ended
        await until(lambda: any(f"small{number}" in one.packages for one in known), 20.0)
    await asyncio.sleep(dice.uniform(0.05, 0.6))
    ours = {p: start for p, start in descendants(worker.pid).items() if is_of_a_sandbox(p)}
    assert len(ours) > 2 * SESSIONS  # each has a launcher and a guest
    await worker.kill()
    await until(lambda: not alive(ours) and not processes_of(uids), DEAD_WITHIN_S)
    left = [command_of(pid) for pid in {*alive(ours), *processes_of(uids)}]
    for outcome in await asyncio.gather(*lives, return_exceptions=True):
        assert outcome is None or isinstance(outcome, aio.AioRpcError), outcome
    assert not left


async def finish_one(session: Driven, known: Known, number: int) -> None:
    """A task that ends before the worker does."""
    request = session.request(
        python(f"print({number}, 'of', {known.id!r})"),
        task_id=f"done-{number}",
        sequence=known.next(),
    )
    known.answer = request, await result_of(session.wire, request)


async def write(session: Driven, known: Known, number: int) -> None:
    for count in range(10**6):
        path, data = f"acknowledged/{number}-{count}", os.urandom(random.randrange(8192))
        ran = await session.write(path, data)
        done = ran.result.typed_response.fs_write
        assert done.sha256 == hashlib.sha256(data).hexdigest(), ran
        known.files[path] = done.sha256
        if count == 4:
            path, data = f"acknowledged/{number}-large", os.urandom(200_000)
            known.files[path] = (await session.upload(path, [data])).sha256
            assert known.files[path] == hashlib.sha256(data).hexdigest()
        if count > 20:
            await asyncio.sleep(0.02)  # the disk must last for all rounds


async def install(session: Driven, known: Known, number: int) -> None:
    request = tools.PkgInstallRequest(packages=[f"small{number}"])
    ran = await session.task(tools.ToolRequest(pkg_install=request))
    assert ran.result.typed_response.pkg_install.exit_code == 0, ran
    known.packages.add(f"small{number}")


async def print_for_ever(session: Driven, known: Known, number: int) -> None:
    await run_on(session, known, number, PRINTER)


async def scribble(session: Driven, known: Known, number: int) -> None:
    await run_on(session, known, number, SCRIBBLER)


async def run_on(session: Driven, known: Known, number: int, code: str) -> None:
    known.running, known.seen = (
        session.request(
            python(code),
            task_id=f"lost-{number}",
            sequence=known.next(),
            on_disconnect=te.ON_DISCONNECT_DETACH,
        ),
        False,
    )
    async for _ in session.wire.tasks.ExecuteTask(known.running):
        known.seen = True


ROLES = [write, print_for_ever, install, scribble]


async def check_adopted(wire: Wire, known: list[Known], incarnation: int) -> None:
    """Every session is there under its id, with all that it was told."""
    room = await wire.sessions.GetCapacity(sm.CapacityRequest())
    assert sorted(info.session_id for info in room.sessions) == sorted(one.id for one in known)
    checks: list[Coroutine[Any, Any, None]] = [check_one(wire, one, incarnation) for one in known]
    await asyncio.gather(*checks)


async def check_one(wire: Wire, known: Known, incarnation: int) -> None:
    session = Driven(wire, known.id)
    status = await wire.sessions.GetSessionStatus(sm.SessionStatusRequest(session_id=known.id))
    assert status.info.incarnation == incarnation
    if known.answer is not None:
        request, answer = known.answer
        assert await result_of(wire, request) == answer
    await check_lost(wire, known)
    imports = "".join(f"import {name}; assert {name}.VERSION == '1.0'\n" for name in known.packages)
    ran = await session.python(imports + HASHES)
    assert ran.ok, ran
    found = json.loads(ran.stdout)
    wrong = {path for path, sha256 in known.files.items() if found.get(path) != sha256}
    assert not wrong
    if len(known.files) > MANY:
        assert (await session.shell("rm -r acknowledged")).ok
        known.files.clear()


async def check_lost(wire: Wire, known: Known) -> None:
    """A task that ran is reported lost, by status and to who repeats the request."""
    running, known.running = known.running, None
    if running is None:
        return
    ask = te.StatusRequest(session_id=known.id, task_id=running.task_id)
    tasks = await wire.tasks.ListTasks(te.ListTasksRequest(session_id=known.id))
    if running.task_id not in {task.task_id for task in tasks.tasks}:
        assert not known.seen  # the kill came before it was taken
        return
    status = await wire.tasks.GetTaskStatus(ask)
    assert status.ended_by == common.ENDED_BY_WORKER_LOST, status
    lost = await result_of(wire, running)
    assert lost.metadata.ended_by == common.ENDED_BY_WORKER_LOST, lost
    assert lost.status == te.TaskResult.STATUS_FAILURE


async def read_through_worker(wire: Wire, known: Known) -> None:
    session = Driven(wire, known.id)
    for path in random.sample(sorted(known.files), min(5, len(known.files))):
        assert await session.sha256(path) == known.files[path]


async def result_of(wire: Wire, request: te.TaskRequest) -> te.TaskResult:
    messages = [message async for message in wire.tasks.ExecuteTask(request)]
    assert messages[-1].HasField("result"), messages[-1]
    return messages[-1].result


def alive(processes: dict[int, str]) -> list[int]:
    """Those that still run code, told from later owners of their pids.

    The last process of a mount namespace is an exiting one for as long as its unmounts take.
    """
    return [
        pid
        for pid, started in processes.items()
        if (stat := stat_of(pid)) and stat[19] == started and not int(stat[6]) & PF_EXITING
    ]


def is_of_a_sandbox(pid: int) -> bool:
    """Whether a process of the worker's runs as another user, or is on the way to that."""
    with suppress(OSError):
        marked = b"CODEGEN_LAUNCHER=" in Path(f"/proc/{pid}/environ").read_bytes()
        return marked or uids_of(pid) != {os.geteuid()}
    return False


def command_of(pid: int) -> str:
    """What a process is and what it waits for."""
    facts = []
    for name in ("cmdline", "stat", "wchan", "stack"):
        with suppress(OSError):
            facts.append(Path(f"/proc/{pid}/{name}").read_text().replace("\0", " "))
    return " | ".join(facts)
