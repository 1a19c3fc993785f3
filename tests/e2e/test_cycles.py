"""Sessions made, used and destroyed over and over: the worker and the host end as they began."""

import asyncio
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp.sandbox.cgroup_files import (
    KernelCgroupFs,
    find_groups,
    hierarchies_v1,
    hierarchy_v2,
)
from codegen_mcp.sandbox.loop_device import devices_below
from codegen_mcp.sandbox.mounts import mounts_below, read_mounts
from codegen_mcp.sandbox.state_lock import worker_token
from codegen_mcp.testing.driven import descendants, driven, python, until
from codegen_mcp.testing.wire import Wire, dial
from codegen_mcp.testing.worker import WorkerProcess, worker_process

MIB = 1024 * 1024
SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
CYCLES = 500 if SOAK else 100
WARM_UP = 120
AT_ONCE = 4
PER_CYCLE = 10 * 1024
"""Bytes of resident memory that a cycle may leave: of real growth a session's record, a task's
output or a thread's stack would be more."""
REST_WITHIN_S = 20.0
LATE_THREADS = 2
"""Of pools that start a thread when all others happen to be busy."""
SLACK = 2 * MIB
"""What the allocator moves from one sample to the next."""

pytestmark = [pytest.mark.usefixtures("kernel_limits"), pytest.mark.timeout(3600 if SOAK else 120)]


@dataclass(frozen=True)
class Held:
    """What a worker holds of the host."""

    descriptors: dict[str, int]
    processes: int
    mounts: int
    loop_devices: int
    cgroups: int
    files: dict[str, int]
    """Entries below each part of the state directory."""


def held(worker: WorkerProcess) -> Held:
    state = worker.state
    tops = {hierarchy.mount_point for hierarchy in hierarchies_v1().values()}
    if unified := hierarchy_v2():
        tops.add(unified.mount_point)
    fs, name = KernelCgroupFs(), f"codegen-{worker_token(state)}"
    return Held(
        descriptors=dict(Counter(descriptors(worker.pid))),
        processes=len(descendants(worker.pid)),
        mounts=len(mounts_below(state, read_mounts(worker.pid))),
        loop_devices=len(devices_below(state)),
        cgroups=sum(
            len(fs.children(group)) for top in tops for group in find_groups(fs, top, name)
        ),
        files={
            part.name: sum(len(below) + len(files) for _, below, files in os.walk(part))
            for part in state.iterdir()
        },
    )


def descriptors(pid: int) -> Iterator[str]:
    """What each descriptor of a process is, without numbers.

    Blocks of host users are left out: used users rest until a whole block of them does.
    """
    for target in links(pid):
        if "/uids-" not in target:
            yield re.sub(r"[0-9a-f]{8,}|\d+", "N", target)


def blocks_of_users(pid: int) -> int:
    return sum("/uids-" in target for target in links(pid))


def links(pid: int) -> Iterator[str]:
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            yield os.readlink(entry.path)


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def rested(worker: WorkerProcess) -> Held:
    """What it holds once that stays the same: the pool is full, the trash empty."""
    seen, same = held(worker), 0
    async with asyncio.timeout(REST_WITHIN_S):
        while same < 10:
            await asyncio.sleep(0.05)
            now = held(worker)
            same = same + 1 if now == seen else 0
            seen = now
    return seen


async def test_sessions_leave_nothing_behind_however_many_there_were():
    settings: dict[str, Any] = {
        "max_sessions": AT_ONCE + 2,
        "pool_size": 2,
        "memory_bytes": 64 * MIB,
        "disk_bytes": 16 * MIB,
        "private_mounts": True,
    }
    async with worker_process(**settings) as worker, dial(worker.address) as wire:
        dice = random.Random(500)
        await cycles(wire, WARM_UP, dice)
        before = await rested(worker)
        memory, threads = resident(worker.pid), len(os.listdir(f"/proc/{worker.pid}/task"))
        await cycles(wire, CYCLES, dice)
        await until(lambda: held(worker) == before, REST_WITHIN_S)
        after = await rested(worker)
        grown = resident(worker.pid) - memory
        more = len(os.listdir(f"/proc/{worker.pid}/task")) - threads
        blocks, log = blocks_of_users(worker.pid), worker.log
    assert after == before
    assert "Traceback" not in log, log
    assert blocks <= 3
    assert more <= LATE_THREADS
    assert grown < SLACK + CYCLES * PER_CYCLE


async def cycles(wire: Wire, count: int, dice: random.Random) -> None:
    """Make, use and destroy that many sessions, some at once."""
    waiting = iter(range(count))

    async def work() -> None:
        for number in waiting:
            await USES[number % len(USES)](wire, dice)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def print_one(wire: Wire, dice: random.Random) -> None:
    async with driven(wire) as session:
        ran = await session.python("print(1)")
        assert ran.stdout == b"1\n", ran


async def use_files(wire: Wire, dice: random.Random) -> None:
    async with driven(wire) as session:
        data = dice.randbytes(300_000)
        await session.upload("a/b", [data])
        assert (await session.read("a/b")).result.typed_response.fs_read.data == data
        assert (await session.shell("cp -r a c && ls -R | wc -l")).ok


async def be_destroyed_while_it_runs(wire: Wire, dice: random.Random) -> None:
    async with driven(wire) as session:
        code = "print('up', flush=True)\nwhile True: pass"
        stream = aiter(wire.tasks.ExecuteTask(session.request(python(code))))
        await anext(stream)
    *_, last = [message async for message in stream]
    assert last.result.metadata.ended_by == common_pb2.ENDED_BY_CANCELLED


async def be_left_by_its_caller(wire: Wire, dice: random.Random) -> None:
    async with driven(wire) as session:
        code = "print('up', flush=True)\nimport time; time.sleep(60)"
        call = wire.tasks.ExecuteTask(session.request(python(code)))
        await call.read()
        call.cancel()


async def lose_its_sandbox(wire: Wire, dice: random.Random) -> None:
    async with driven(wire) as session:
        held = "held = []\nwhile True: held.append(bytes(1 << 20))"
        assert (await session.python(held)).ended_by == "memory"
        assert (await session.python("print(1)")).ok


async def leave_daemons(wire: Wire, dice: random.Random) -> None:
    async with driven(wire) as session:
        daemon = "import os, time\nif os.fork() == 0:\n os.setsid(); time.sleep(600)"
        assert (await session.python(daemon)).ok


USES = [
    print_one,
    use_files,
    be_destroyed_while_it_runs,
    be_left_by_its_caller,
    lose_its_sandbox,
    leave_daemons,
]
