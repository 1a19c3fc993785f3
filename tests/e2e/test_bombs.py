"""Abuse of every resource: ended in time and for the true reason, the neighbour served meanwhile.

What must come out is derived, not observed: the first reason that applies in docs/concepts/
limits.md ("Why a run ended"), 124 for what the worker ends, 137 for memory, else the program's own
code: 1 for a Python program that an exception ends.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from codegen_mcp._proto.codegen.v1 import tools_pb2 as tools
from codegen_mcp.testing.driven import (
    Ran,
    call,
    driven,
    host_user,
    p95,
    processes_of,
    python,
    until,
)
from codegen_mcp.testing.neighbour import Neighbour, neighbour
from codegen_mcp.testing.wire import Wire, dial
from codegen_mcp.testing.worker import worker_process

MIB = 1024 * 1024
MEMORY, PIDS, DISK, OUTPUT = 128 * MIB, 64, 32 * MIB, 8 * MIB
GRACE_S = 2.0
"""How long after its limit a run may still be seen."""
CLEAN_WITHIN_S = 2.0
SLOWER = 5.0
"""How much the 95th percentile of a neighbour's print(1) may grow."""
ENOUGH = 20
"""Samples of it; a bomb that is over sooner is set off again."""

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("kernel_limits"),
]


@dataclass(frozen=True)
class Bomb:
    """A program, how it must end, and how long it may take to meet its limit."""

    name: str
    code: str = ""
    ended_by: str = "exit"
    exit_code: int = 0
    limits_hit: tuple[str, ...] = ()
    signal: int | None = None
    """Where it is certain; a guest that is too slow to tell is killed without having told."""
    stdout: str = ""
    """Part of it."""
    stderr: str = ""
    """Part of it."""
    reaches_s: float = 2.0
    """For a bomb with a time limit that time, else what an idle machine needs, and room."""
    timeout_s: int = 20
    constraints: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    """Of the session, where others than the worker's."""
    shell: str = ""
    """Instead of code."""

    @property
    def tool(self) -> tools.ToolRequest:
        return call("run.shell", command=self.shell) if self.shell else python(self.code)


def memory(name: str, code: str, **fields: Any) -> Bomb:
    """Killed by the kernel: SIGKILL is in the code, whichever process it hit first."""
    return Bomb(name, code, "memory", 137, ("memory",), **fields)


def refused(name: str, code: str, limit: str, stderr: str, **fields: Any) -> Bomb:
    """Refused by the kernel, and an exception that nobody catches."""
    return Bomb(name, code, limit, 1, (limit,), stderr=stderr, **fields)


def endless(name: str, code: str, *further: str, **fields: Any) -> Bomb:
    """Ended by the worker for its time."""
    hit = ("timeout", *further)
    return Bomb(name, code, "timeout", 124, hit, reaches_s=1, timeout_s=1, **fields)


ROOMY = {"max_memory_bytes": 512 * MIB}
FILL = """
number = 0
while True:
    with open(f"{place}/{{number}}", "wb") as file:
        file.write(bytes({size}))
    number += 1
"""
PIPES = """
import fcntl, os
held = 0
try:
    while True:
        end, start = os.pipe()
        os.set_blocking(start, False)
        try:
            fcntl.fcntl(start, fcntl.F_SETPIPE_SZ, 1 << 20)
        except PermissionError:
            pass
        try:
            while True:
                held += os.write(start, bytes(65536))
        except BlockingIOError:
            pass
except OSError as error:
    print(error.strerror, held)
"""
DAEMONS = """
import os, time
for _ in range(10):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
print("the parent goes")
"""
POOL = """
import multiprocessing, time
def hold(_):
    held = bytearray(100 << 20)
    time.sleep(600)
if __name__ == "__main__":
    multiprocessing.Pool(8).map(hold, range(8))
"""

BOMBS = [
    memory("one process takes memory", "held = []\nwhile True: held.append(bytearray(1 << 20))"),
    memory("one allocation of 10 GB", "print(len(bytearray(10 ** 10)))"),
    # Those that are hit leave a parent that waits for ever: the whole run must end.
    memory("eight processes of 100 MB", POOL),
    memory("files in /tmp", FILL.format(place="/tmp", size=MIB)),
    memory("files in /dev/shm", FILL.format(place="/dev/shm", size=MIB)),
    # Room for all of it: then /tmp's own size is what refuses.
    Bomb(
        "files in /tmp, with memory for more than its size",
        FILL.format(place="/tmp", size=MIB),
        exit_code=1,
        stderr="No space left on device",
        limits=ROOMY,
        reaches_s=3.0,
    ),
    memory(
        "memory files",
        "import os\nwhile True:\n fd = os.memfd_create('m')\n for _ in range(16): "
        "os.write(fd, bytes(1 << 20))",
    ),
    memory("pipe buffers", PIPES, constraints={"memory_bytes": 32 * MIB}),
    Bomb("pipe buffers, with memory for what a user may have", PIPES, stdout="Too many open files"),
    Bomb(
        "a reservation of 1000 GB that is not used",
        "import mmap\nflags = mmap.MAP_PRIVATE | 0x4000\n"
        "with mmap.mmap(-1, 1000 << 30, flags=flags) as held:\n held[5] = 1; print(len(held))",
        stdout=str(1000 << 30),
    ),
    refused(
        "a linear fork bomb",
        "import os, signal\nwhile True:\n if os.fork() == 0: signal.pause()",
        "pids",
        "Resource temporarily unavailable",
    ),
    refused(
        "an exponential fork bomb",
        "import os\nwhile True: os.fork()",
        "pids",
        "Resource temporarily unavailable",
        limits=ROOMY,  # for as many tracebacks
    ),
    endless(
        "an exponential fork bomb that goes on when refused",
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
        "pids",
        limits=ROOMY,
    ),
    refused(
        "threads",
        "import threading\nwait = threading.Event().wait\n"
        "while True: threading.Thread(target=wait, daemon=True).start()",
        "pids",
        "can't start new thread",
    ),
    endless("a busy loop", "while True: pass"),
    endless("four busy processes", "import os\nfor _ in range(2): os.fork()\nwhile True: pass"),
    Bomb(
        "a flood of output",
        "while True: print('x' * 1000)",
        "output",
        124,
        ("output",),
    ),
    refused(
        "one big file",
        "file = open('big', 'wb', 0)\nwhile True: file.write(bytes(1 << 20))",
        "disk",
        "OSError",  # of its length or of the volume, whichever is met first
    ),
    refused("many files", FILL.format(place=".", size=MIB), "disk", "No space left on device"),
    refused(
        "a hundred thousand tiny files",
        "for number in range(100_000): open(str(number), 'w').write('x')",
        "disk",
        "No space left on device",
        reaches_s=5.0,
    ),
    # Nothing is occupied, so the disk is not full: the program is told and ends by itself.
    Bomb(
        "a sparse file of 1 TB",
        "open('sparse', 'wb').truncate(1 << 40)",
        exit_code=1,
        stderr="File too large",
    ),
    Bomb(
        "a sparse file of 1 TB by a program that does not ask",
        shell="exec truncate --size 1T sparse",
        ended_by="signal",
        exit_code=128 + 25,
        signal=25,
    ),
    Bomb("daemons that outlive their parent", DAEMONS, stdout="the parent goes"),
    Bomb(
        "descriptors",
        "import os\nheld = []\nwhile True: held.append(os.open('/dev/null', os.O_RDONLY))",
        exit_code=1,
        stderr="Too many open files",
    ),
    endless(
        "a program that ignores every signal and exception",
        "import signal\nfor number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)\n"
        "while True:\n try:\n  while True: pass\n except BaseException: pass",
    ),
    endless("a catastrophic regular expression", "import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')"),
    endless("a loop inside the interpreter", "print(sum(range(10 ** 12)))"),
]


@dataclass
class Ground:
    """A worker with a neighbour in it, who knows how long his print(1) takes at rest."""

    wire: Wire
    state: Path
    neighbour: Neighbour


@asynccontextmanager
async def ground(**settings: Any) -> AsyncIterator[Ground]:
    settings = {
        "memory_bytes": MEMORY,
        "pids": PIDS,
        "disk_bytes": DISK,
        "output_bytes": OUTPUT,
        "max_sessions": 4,
        **settings,
    }
    async with worker_process(**settings) as worker, dial(worker.address) as wire:
        async with driven(wire) as session, neighbour(worker.address, session.id) as other:
            yield Ground(wire, worker.state, other)
        assert "Traceback" not in worker.log, worker.log


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def field_(kernel_limits: None) -> AsyncIterator[Ground]:
    async with ground() as made:
        yield made


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.name)
async def test_it_ends_in_time_for_its_reason_and_harms_nobody(field_: Ground, bomb: Bomb):
    slower = 0.0
    for _ in range(2):  # the quieter of two tries: others use this machine too
        rest, during = await field_.neighbour.at_rest(), list[float]()
        while len(during) < ENOUGH:
            during += (await explode(field_, bomb))[0]
        slower = min(slower or p95(during) / rest, p95(during) / rest)
        if slower < SLOWER:
            return
    raise AssertionError(f"print(1) of the neighbour took {slower:.1f} times as long")


async def explode(on: Ground, bomb: Bomb) -> tuple[list[float], Ran]:
    """Set it off in a session of its own; also returns the neighbour's times meanwhile."""
    async with driven(on.wire, **bomb.limits) as session:
        uid = host_user(on.state, session.id)
        usual = await settled(uid)
        assert usual >= 1  # the spare; launcher and guest may be another user
        await on.neighbour.seconds()
        ran = await session.task(bomb.tool, timeout_s=bomb.timeout_s, **bomb.constraints)
        during = await on.neighbour.seconds()
        facts = ran.facts
        ended = (ran.ended_by, facts.exit_code, ran.limits_hit)
        assert ended == (bomb.ended_by, bomb.exit_code, bomb.limits_hit), ran
        if bomb.signal is not None:
            assert facts.signal == bomb.signal, ran
        assert bool(facts.remedy) == (not ran.ok), ran
        assert bomb.stdout in ran.answer.stdout
        assert bomb.stderr in ran.answer.stderr
        assert ran.seconds < bomb.reaches_s + GRACE_S
        again = await session.python("print(1 + 1)")
        assert (again.ok, again.stdout) == (True, b"2\n"), again
        assert await settled(uid) == usual
    assert await until(lambda: not processes_of({uid}), CLEAN_WITHIN_S), processes_of({uid})
    return during, ran


async def settled(uid: int) -> int:
    """Number of a user's processes once it stays the same."""
    deadline, seen, since = time.monotonic() + CLEAN_WITHIN_S, -1, 0.0
    while time.monotonic() < deadline:
        count = len(processes_of({uid}))
        if count != seen:
            seen, since = count, time.monotonic()
        elif time.monotonic() - since > 0.05:
            break
        await asyncio.sleep(0.01)
    return seen


async def test_a_flood_is_counted_to_the_last_byte_and_shown_by_head_and_tail(field_: Ground):
    code = "import os\nfor number in range(10 ** 9): os.write(1, b'%015d\\n' % number)"
    async with driven(field_.wire) as session:
        ran = await session.python(code, output_bytes=2 * MIB)
    facts, text = ran.facts, ran.answer.stdout
    assert (ran.ended_by, facts.exit_code) == ("output", 124)
    assert len(ran.stdout) == 2 * MIB  # the stream has every byte up to the limit
    assert ran.stdout == b"".join(b"%015d\n" % number for number in range(2 * MIB // 16))
    assert facts.stdout_bytes >= 2 * MIB
    assert facts.stdout_omitted_bytes == facts.stdout_bytes - len(text)
    assert text.startswith("000000000000000\n000000000000001\n")
    assert text[len(text) // 2 :].encode() in ran.stdout


async def test_four_busy_processes_get_no_more_than_their_share_of_the_processors(field_: Ground):
    code = "import os\nfor _ in range(2): os.fork()\nwhile True: pass"
    async with driven(field_.wire, max_cpu_millicores=500) as session:
        ran = await session.python(code, timeout_s=2)
    used = ran.facts.peak_usage.cpu_millicores
    assert 0 < used <= 500 * 1.15  # 0.1 s at either end, which a period is long


async def test_files_of_a_full_disk_can_be_deleted_and_the_space_used_again(field_: Ground):
    async with driven(field_.wire) as session:
        filled = await session.python(FILL.format(place=".", size=MIB))
        written = await session.write("one-more", bytes(2 * MIB))
        deleted = await session.python(
            "import os\nfor name in os.listdir(): os.unlink(name)\n"
            "open('again', 'wb').write(bytes(1 << 20))"
        )
        after = await session.write("one-more", bytes(2 * MIB))
    assert filled.ended_by == "disk"
    assert written.error.code == "RESOURCE_EXHAUSTED", written
    assert deleted.ok, deleted
    assert after.result.typed_response.fs_write.bytes_written == 2 * MIB, after


async def test_the_cpu_time_of_a_run_is_a_budget_of_all_its_processes():
    async with ground(task_cpu_s=1.0, cpu_millicores=2000, pool_size=0) as field:
        busy = Bomb(
            "four busy processes",
            "import os\nfor _ in range(2): os.fork()\nwhile True: pass",
            "cpu",
            124,
            ("cpu",),
            reaches_s=10.0,  # of wall time, which others' work makes longer
        )
        _, ran = await explode(field, busy)
        async with driven(field.wire) as session:
            modest = await session.python("print(sum(range(10 ** 6)))")
    used_s = ran.facts.peak_usage.cpu_millicores / 1000 * ran.facts.duration_ms / 1000
    assert 1.0 <= used_s + 0.01 < 1.0 + GRACE_S, ran
    assert modest.ok, modest
    assert modest.limits_hit == ()
