"""A checkpoint that is taken while code runs is one moment of it, and stops it for no time."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from codegen_mcp.core.limits import MIB
from codegen_mcp.testing.checkpoint_engine import (
    CheckpointEngine,
    checkpoint_engine,
    state_directory,
)
from codegen_mcp.testing.random_tree import tree_of

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
TRIES = 100 if SOAK else 20
FILES = 20_000 if SOAK else 4_000
FREEZE_MS = 50.0
RECORD = 100
SIZE = 3000

pytestmark = [
    pytest.mark.usefixtures("kernel_limits"),
    pytest.mark.timeout(3600 if SOAK else 120),
    pytest.mark.skipif(os.geteuid() != 0, reason="freezing by the control group needs root"),
]

# At every instant: each pair-* is whole and holds equal files, so does what ``current`` leads to,
# and counted as they are changed, first >= log-a >= log-b >= last >= first - 1.
WRITER = f"""
import itertools, mmap, os, shutil, struct
def mapped(name):
    with open(name, 'w+b') as file:
        file.truncate({SIZE} * 4)
        return mmap.mmap(file.fileno(), 0)
first, last = mapped('first'), mapped('last')
logs = [open(name, 'ab', buffering=0) for name in ('log-a', 'log-b')]
def pair(place, number):
    for name in ('p', 'q'):
        with open(f'{{place}}/{{name}}', 'wb') as file:
            file.write(b'%d ' % number * {SIZE})
for number in itertools.count(1):
    struct.pack_into('<Q', first, 8192, number)
    for log in logs:
        log.write(b'%{RECORD}d' % number)
    struct.pack_into('<Q', last, 8192, number)
    os.mkdir('new')
    pair('new', number)
    os.rename('new', f'pair-{{number}}')
    os.mkdir(f'version-{{number}}')
    pair(f'version-{{number}}', number)
    os.symlink(f'version-{{number}}', 'link')
    os.replace('link', 'current')
    for name in (f'pair-{{number - 3}}', f'version-{{number - 1}}'):
        if os.path.exists(name):
            os.rename(name, 'old')
            shutil.rmtree('old')
    if number == 5:
        open('running', 'w').close()
    if os.path.exists('stop'):
        break
"""


@pytest.fixture
async def rig() -> AsyncIterator[CheckpointEngine]:
    with state_directory() as state:
        async with checkpoint_engine(
            state, disk_bytes=512 * MIB, memory_bytes=256 * MIB, max_checkpoints=1000
        ) as opened:
            yield opened


@asynccontextmanager
async def running(rig: CheckpointEngine, session_id: str, code: str) -> AsyncIterator[Path]:
    """Run code until the block ends; yields the session's workspace."""
    workspace = Path(os.fsdecode(rig.root(session_id))) / "workspace"
    task = asyncio.ensure_future(rig.python(session_id, code, timeout_seconds=600))
    try:
        async with asyncio.timeout(20):
            while not (workspace / "running").exists() and not task.done():
                await asyncio.sleep(0.01)
        yield workspace
    finally:
        (workspace / "stop").touch()
        await task


def check(workspace: Path) -> None:
    """What must hold at every instant of WRITER."""
    pairs = [path for path in workspace.iterdir() if path.name.startswith("pair-")]
    assert pairs
    for path in [*pairs, workspace / "current"]:
        one, other = (path / "p").read_bytes(), (path / "q").read_bytes()
        assert one == other, path
        number = one.partition(b" ")[0]
        assert one == number + b" " + (number + b" ") * (SIZE - 1), path
    counters = [
        struct.unpack_from("<Q", (workspace / name).read_bytes(), 8192)[0]
        for name in ("first", "last")
    ]
    logs = [(workspace / name).read_bytes() for name in ("log-a", "log-b")]
    for log in logs:
        assert log == b"".join(b"%100d" % n for n in range(1, len(log) // RECORD + 1))
    order = [counters[0], *(len(log) // RECORD for log in logs), counters[1]]
    assert order == sorted(order, reverse=True)
    assert order[0] - order[-1] <= 1


async def test_every_checkpoint_of_running_code_is_one_moment_of_it(
    rig: CheckpointEngine,
) -> None:
    session_id = await rig.create()
    taken = []
    async with running(rig, session_id, WRITER):
        for number in range(TRIES):
            taken.append(await rig.save(session_id, incremental=number % 4 > 0))
    moments = set()
    for info in taken:
        assert info.consistency == "frozen"
        restored = await rig.restore(info)
        workspace = Path(os.fsdecode(rig.root(restored.session_id))) / "workspace"
        check(workspace)
        moments.add((workspace / "log-a").stat().st_size)
        await rig.destroy(restored.session_id)
    assert len(moments) > TRIES // 2  # the code went on meanwhile
    print("freeze_ms", sorted(info.freeze_ms for info in taken))


CHANGER = f"""
import itertools, os
for number in itertools.count(1):
    for file in range(100):
        small = b'%d ' % number * 7_000
        with open(f'busy/{{file}}', 'wb') as out:
            out.write(small)
    large = os.urandom({8 * MIB})
    with open('busy/large', 'r+b' if number > 1 else 'wb') as out:
        out.write(large)
    if number == 2:
        open('running', 'w').close()
    if os.path.exists('stop'):
        break
"""
MAKER = f"""
import os
for directory in range({FILES} // 100):
    os.makedirs(f'kept/{{directory}}')
    for file in range(100):
        with open(f'kept/{{directory}}/{{file}}', 'wb') as out:
            out.write(b'%d %d ' % (directory, file) * 50)
os.mkdir('busy')
"""


async def test_code_stands_still_for_what_was_touched_only(rig: CheckpointEngine) -> None:
    """Of many files, some 10 MB are written all the time."""
    session_id = await rig.create()
    await rig.python(session_id, MAKER)
    await rig.save(session_id)
    async with running(rig, session_id, CHANGER):
        taken = [await rig.save(session_id, incremental=True) for _ in range(12 if SOAK else 4)]
    freezes = [info.freeze_ms for info in taken]
    print("freeze_ms", freezes, "size", [info.size_bytes for info in taken])
    assert all(info.entries > FILES for info in taken)
    # The slowest quarter is left out: other tests may have the cores for that moment.
    assert sorted(freezes)[(len(freezes) - 1) * 3 // 4] < FREEZE_MS
    last = await rig.restore(taken[-1])
    kept = [path for path in tree_of(rig.root(last.session_id)) if b"/kept/" in path]
    assert len(kept) == FILES + FILES // 100
