"""Sandboxes hang on one thread that never ends, and on the worker's life."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.sandbox import registry
from codegen_mcp.sandbox.cgroup_detect import detect
from codegen_mcp.sandbox.launcher import Spawner, outlast
from codegen_mcp.sandbox.selftest.bed import Bed
from codegen_mcp.testing.sandbox_ground import Ground, prepared_ground
from codegen_mcp.testing.sandbox_rig import Ran, Rig, alive

NAMES = [name for name in registry.BACKENDS if name != "process-bare"]
DIES_WITH_PARENT = ["/usr/bin/setpriv", "--pdeathsig", "KILL", "/bin/sleep", "60"]
WITHIN_S = 3.0


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with prepared_ground() as prepared:
        yield prepared


def wait_until(holds, within_s: float = WITHIN_S) -> bool:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def in_short_thread(work):
    """Do the work in a thread that ends right after it."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def test_a_child_of_a_thread_dies_with_that_thread() -> None:
    """The trap itself, as this kernel has it."""

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(DIES_WITH_PARENT)
        comm = Path(f"/proc/{process.pid}/comm")
        assert wait_until(lambda: comm.read_text().strip() == "sleep")
        return process

    process = in_short_thread(start)
    assert process.wait(WITHIN_S) == -signal.SIGKILL


def test_what_the_spawner_starts_outlives_the_thread_that_asked() -> None:
    spawner = Spawner()

    async def start() -> subprocess.Popen[bytes]:
        return await spawner.spawn(DIES_WITH_PARENT, pass_fds=(), stderr=2)

    process = in_short_thread(lambda: asyncio.run(start()))
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    finally:
        process.kill()
        process.wait()


def test_letting_go_of_the_spawner_ends_its_thread() -> None:
    spawner = Spawner()
    assert spawner.thread_id
    task = Path(f"/proc/self/task/{spawner.thread_id}")
    assert task.exists()
    del spawner
    assert wait_until(lambda: not task.exists())


async def test_a_spawn_is_waited_for_when_the_caller_is_cancelled() -> None:
    spawner = Spawner()
    spawned = []

    async def start() -> None:
        spawning = spawner.spawn(["/bin/true"], pass_fds=(), stderr=2)
        cancelled = await outlast(spawning)
        spawned.append((spawning.result(), cancelled))

    starting = asyncio.ensure_future(start())
    await asyncio.sleep(0)
    starting.cancel()
    await starting
    process, cancelled = spawned[0]
    assert cancelled
    assert process.wait(WITHIN_S) == 0


async def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        await Spawner().spawn(["/nonexistent"], pass_fds=(), stderr=2)


@pytest.mark.parametrize("name", NAMES)
async def test_sandboxes_survive_the_thread_in_which_they_were_made(
    ground: Ground, name: str
) -> None:
    with ground.config() as config:
        backend = registry.create(name, config)
        probe = in_short_thread(lambda: asyncio.run(backend.probe()))
        if not probe.available:
            pytest.skip(probe.reason)
        async with Rig(backend, config, ground.identities) as rig:
            place = await rig.place()
            await asyncio.sleep(0.2)
            assert (await rig.run(place, "print(1)")).stdout == b"1\n"


@pytest.mark.parametrize("name", NAMES)
async def test_no_process_of_a_sandbox_has_the_workers_environment(
    ground: Ground, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_SECRET_FOR_TEST", "do not pass on")
    with ground.config() as config:
        backend = registry.create(name, config)
        async with Rig(backend, config, ground.identities) as rig:
            place = await rig.place()
            ran = Ran()
            code = "print(1, flush=True); import time; time.sleep(60)"
            running = asyncio.ensure_future(rig.run(place, code, ran=ran))
            await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
            pids = place.sandbox.processes()
            # An engine keeps its own processes outside: guest and run are all of a container.
            assert len(pids) >= (2 if name == "container" else 3)
            for pid in pids:
                for file in ("environ", "cmdline"):
                    with contextlib.suppress(PermissionError):
                        assert b"WORKER_SECRET" not in Path(f"/proc/{pid}/{file}").read_bytes()
                links = Path(f"/proc/{pid}/fd")
                with contextlib.suppress(PermissionError):
                    for link in links.iterdir():
                        with contextlib.suppress(OSError):
                            target = os.readlink(link)
                            # gVisor's kernel keeps its own configuration; code cannot reach it.
                            own = f"{ground.state}/gvisor/bundles/"
                            if not (target.startswith(own) and target.endswith("/config.json")):
                                assert str(ground.state) not in target
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def remove_groups(pid: int) -> None:
    """Remove the control groups that a killed worker left."""
    if driver := detect(f"test-{pid}").driver:
        driver.remove_stale()
        driver.close()


WORKER = """
import asyncio, sys
from codegen_mcp.core.limits import RunLimits
from codegen_mcp.core.task import Command, PythonCode
from codegen_mcp.sandbox import registry
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.selftest.bed import Bed
from codegen_mcp.testing.sandbox_ground import Ground
from codegen_mcp.testing.sandbox_rig import Ran

CODE = b'''
import os, signal, time
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except OSError: pass
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True: time.sleep(1)
        os._exit(0)
print(1, flush=True)
while True: pass
'''

async def main():
    ground = Ground.from_json(sys.argv[1])
    uids = [HostIdentity(uid=int(uid), gid=int(uid)) for uid in sys.argv[3:]] or [None] * 3
    with ground.config() as config:
        backend = registry.create(sys.argv[2], config)
        bed = await Bed(backend, config).__aenter__()
        pids = []
        for uid in uids[:3]:
            place, ran = await bed.place(uid), Ran()
            limits = RunLimits(timeout_s=60, output_bytes=9)
            command = Command(program=PythonCode(CODE), limits=limits)
            asyncio.ensure_future(place.sandbox.run(command, ran))
            await ran.printed.wait()
            pids += place.sandbox.processes()
        print(*pids, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("name", NAMES)
def test_nothing_lives_after_the_worker_was_killed(ground: Ground, name: str) -> None:
    uids = [str(identity.uid) for identity in ground.identities]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, ground.to_json(ground.state), name, *uids],
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        try:
            assert worker.stdout
            pids = [int(word) for word in worker.stdout.readline().split()]
            assert len(pids) >= 3 * 5
        finally:
            worker.kill()
            worker.wait()
    assert wait_until(lambda: not any(map(alive, pids))), [pid for pid in pids if alive(pid)]
    remove_groups(worker.pid)


def files(root: Path) -> set[Path]:
    """Everything below; but interpreters may compile what the ground itself holds meanwhile."""
    return {path for path in root.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("name", NAMES)
async def test_a_removed_sandbox_leaves_no_file(ground: Ground, name: str) -> None:
    with ground.config() as config:
        before = files(ground.state)
        async with Bed(registry.create(name, config), config) as bed:
            await bed.place(config.identity)
            assert files(ground.state) - before
        assert files(ground.state) - before <= {ground.state / "links"}
