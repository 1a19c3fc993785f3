"""Checkpoints of real sessions: what they hold, what they refuse, and that nothing else is left."""

from __future__ import annotations

import asyncio
import os
import random
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from codegen_mcp.core.checkpoint import CheckpointInfo
from codegen_mcp.core.errors import (
    AlreadyExists,
    Corrupt,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    WrongState,
)
from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.core.session import Durability
from codegen_mcp.core.task import EndedBy
from codegen_mcp.testing.checkpoint_engine import (
    CheckpointEngine,
    checkpoint_engine,
    state_directory,
)
from codegen_mcp.testing.random_tree import Facts
from codegen_mcp.testing.small_index import small_index, small_wheel

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
KEEP = 5
WHEELS = {
    f"{name}-1.0-py3-none-any.whl": small_wheel(name) for name in ("small0", "small1", "late")
}
WAIT = """
import os, time
open('running', 'w').close()
while not os.path.exists('go'):
    time.sleep(0.005)
"""

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(3600 if SOAK else 120),
    pytest.mark.skipif(os.geteuid() != 0, reason="the files of other users need root"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[CheckpointEngine]:
    with small_index(WHEELS) as index, state_directory() as state:
        settings: dict[str, Any] = {"max_checkpoints": KEEP, "package_index_urls": index}
        async with checkpoint_engine(state, **settings) as opened:
            yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def session_id(rig: CheckpointEngine) -> AsyncIterator[str]:
    made = await rig.create()
    yield made
    for view in rig.engine.sessions.list():
        await rig.destroy(view.session_id)
    assert rig.remains() == []


async def save_tree(
    rig: CheckpointEngine, session_id: str, *, incremental: bool = True
) -> tuple[CheckpointInfo, dict[bytes, Facts]]:
    """Save a session at rest, and look at what it was."""
    return await rig.save(session_id, incremental=incremental), rig.tree(session_id)


async def saves(
    rig: CheckpointEngine, session_id: str, count: int
) -> list[tuple[CheckpointInfo, dict[bytes, Facts]]]:
    """Take checkpoints on top of each other, each with a change."""
    taken = []
    for number in range(count):
        rig.edit(session_id, [("write", b"workspace/%d" % number, 3000, number)])
        rig.edit(session_id, [("write", b"workspace/same", 3000, number)])
        taken.append(await save_tree(rig, session_id))
    return taken


async def until_there(rig: CheckpointEngine, session_id: str, name: str) -> None:
    path = Path(os.fsdecode(rig.root(session_id))) / "workspace" / name
    async with asyncio.timeout(10):
        while not path.exists():
            await asyncio.sleep(0.005)


async def test_what_code_makes_comes_back(rig: CheckpointEngine, session_id: str) -> None:
    code = """
import os, time
os.makedirs('deep/er', mode=0o750); os.mkdir('empty'); os.mkfifo('pipe')
open('a', 'w').write('hello'); os.link('a', 'deep/b'); os.symlink('nowhere', 'dangling')
os.symlink('loop', 'loop'); os.symlink('/etc/passwd', 'absolute'); os.symlink('.', 'deep/self')
open(b'\\xff\\xfe\\n', 'w').write('odd'); os.chmod('a', 0o4711)
with open('holes', 'wb') as f:
    f.seek(30 << 20); f.write(b'z')
os.utime('a', ns=(5, -5)); os.utime('dangling', ns=(7, 7), follow_symlinks=False)
os.utime('deep', ns=(9, 1 << 60))
here = os.open('.', os.O_RDONLY)
for _ in range(40):
    os.mkdir('n' * 200, dir_fd=here); here = os.open('n' * 200, os.O_RDONLY, dir_fd=here)
os.close(os.open('bottom', os.O_CREAT | os.O_WRONLY, dir_fd=here))
"""
    await rig.python(session_id, code)
    taken = [await save_tree(rig, session_id, incremental=False)]
    await rig.python(session_id, "import os; os.rename('deep', 'moved'); open('pipe2', 'w')")
    taken.append(await save_tree(rig, session_id))
    for info, tree in taken:
        await rig.comes_back(info, tree)
    copy = (await rig.restore(taken[0][0])).session_id
    code = "print(open('a').read(), open('deep/b').read(), os.stat('holes').st_blocks < 100)"
    assert await rig.python(copy, "import os; " + code) == "hello hello True\n"


async def test_a_session_comes_back_with_all_that_it_asked_for(rig: CheckpointEngine) -> None:
    asked: dict[str, Any] = {
        "workspace_id": "w-1",
        "user_id": "u-1",
        "env": {"A": "b", "EMPTY": "", "UMLAUT": "\u00e4\n"},
        "metadata": {"key": "value"},
        "limits": ResourceLimits(disk_bytes=48 * MIB, memory_bytes=96 * MIB, pids=50),
        "idle_timeout_s": 777.0,
        "auto_restore": True,
        "durability": Durability.TURN,
        "checkpoint_interval_s": 1234.0,
    }
    session_id = await rig.create(**asked)
    before = rig.engine.sessions.get(session_id)
    info = await rig.save(session_id, name="the first")
    assert info.name == "the first"
    for new in (True, False):
        restored = await rig.restore(info, new=new)
        view = rig.engine.sessions.get(restored.session_id)
        for name in ("workspace_id", "user_id", "metadata", "limits", "language", "auto_restore"):
            assert getattr(view, name) == getattr(before, name), name
        assert (view.durability, view.checkpoint_interval_s) == (Durability.TURN, 1234.0)
        assert rig.session(restored.session_id).idle_timeout_s == 777.0
        code = "import os; print([os.environ[n] for n in ('A', 'EMPTY', 'UMLAUT')])"
        assert await rig.python(restored.session_id, code) == f"{['b', '', 'ä' + chr(10)]}\n"
        assert view.incarnation == (1 if new else 2)
        assert view.restored_from == str(info.checkpoint_id)
        assert bool(view.lost) == (not new)
        await rig.destroy(restored.session_id)


async def test_packages_come_back_usable(rig: CheckpointEngine, session_id: str) -> None:
    listing = """
import importlib.metadata as m, subprocess, sys, small0
print(sorted((d.name, d.version) for d in m.distributions()), small0.VERSION)
code = 'import small1; print(small1.VERSION, small1.__file__)'
print(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True))
"""
    await rig.task(session_id, "pkg.install", packages=["small0"])
    first = await rig.save(session_id)
    assert "small0==1.0" in first.installed_packages
    await rig.task(session_id, "pkg.install", packages=["small1"])
    second, tree = await save_tree(rig, session_id)
    assert {"small0==1.0", "small1==1.0"} <= set(second.installed_packages)
    listed = await rig.python(session_id, listing)
    assert "1.0" in listed
    assert "Error" not in listed
    copy = (await rig.restore(second)).session_id
    assert rig.tree(copy) == tree
    assert await rig.python(copy, listing) == listed
    await rig.task(copy, "pkg.install", packages=["late"])
    assert await rig.python(copy, "import late; print(late.VERSION)") == "1.0\n"
    older = (await rig.restore(first)).session_id
    missing = "import importlib.util as u; print(u.find_spec('small0') is not None, "
    assert await rig.python(older, missing + "u.find_spec('small1'))") == "True None\n"


async def test_retention_never_breaks_what_is_listed(
    rig: CheckpointEngine, session_id: str
) -> None:
    await overwrite_and_save(rig, session_id, KEEP)


@pytest.mark.skipif(not SOAK, reason="the setting of the others is the sample")
@pytest.mark.parametrize("keep", range(2, 11))
async def test_retention_of_any_number_never_breaks_what_is_listed(keep: int) -> None:
    with state_directory() as state:
        async with checkpoint_engine(state, max_checkpoints=keep) as rig:
            await overwrite_and_save(rig, await rig.create(), keep)


async def overwrite_and_save(rig: CheckpointEngine, session_id: str, keep: int) -> None:
    """Chains of six, of files that are overwritten one after the other."""
    trees = {}
    for number in range(14):
        rig.edit(session_id, [("write", b"workspace/%d" % (number % 5), 900, number)])
        info, tree = await save_tree(rig, session_id, incremental=number % 6 != 5)
        trees[info.checkpoint_id] = tree
        listed = await rig.engine.checkpoints.list(session_id)
        numbers = [one.checkpoint_id.number for one in listed]
        assert numbers == list(range(number + 1, max(0, number + 1 - keep), -1))
    for one in listed:
        await rig.comes_back(one, trees[one.checkpoint_id])
    needed = {number for one in listed for number in one.chain}
    kept = {int(name[-15:-5]) for name in rig.objects(session_id) if name.endswith(".json")}
    assert kept == needed
    assert all([one.ok async for one in rig.engine.checkpoints.verify(session_id)])


@pytest.mark.parametrize("seed", range(30 if SOAK else 1))
async def test_deleting_any_in_any_order_keeps_the_others(
    rig: CheckpointEngine, session_id: str, seed: int
) -> None:
    left = await saves(rig, session_id, KEEP)
    random.Random(seed).shuffle(left)
    while left:
        gone, _ = left.pop()
        await rig.engine.checkpoints.delete(str(gone.checkpoint_id))
        for again in (rig.restore(gone), rig.engine.checkpoints.delete(str(gone.checkpoint_id))):
            with pytest.raises(NotFound):
                await again
        listed = {one.checkpoint_id for one in await rig.engine.checkpoints.list(session_id)}
        assert listed == {info.checkpoint_id for info, _ in left}
        for info, tree in left[-2:]:
            await rig.comes_back(info, tree)
    # The highest number stays used, and nothing else.
    assert [name.partition(".")[2] for name in rig.objects(session_id)] == ["deleted"]
    assert (await rig.save(session_id)).checkpoint_id.number == KEEP + 1


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "cut", "missing"])
@pytest.mark.parametrize("suffix", [".tar.gz", ".manifest.gz", ".json"])
async def test_a_damaged_parent_is_an_error_and_the_next_checkpoint_is_whole(
    rig: CheckpointEngine, session_id: str, suffix: str, damage: Callable[[Path], None]
) -> None:
    (parent, _), (child, tree) = await saves(rig, session_id, 2)
    assert list(child.chain) == [1, 2]
    damage(rig.object(parent, suffix))
    before = rig.tree(session_id)
    for info in (parent, child):
        if info is child and suffix == ".manifest.gz":
            await rig.comes_back(child, tree)  # it has one of its own
            continue
        for new in (True, False):
            with pytest.raises((Corrupt, NotFound)):
                await rig.restore(info, new=new)
    assert rig.tree(session_id) == before
    bad = [
        one.checkpoint_id async for one in rig.engine.checkpoints.verify(session_id) if not one.ok
    ]
    assert bad or damage is Path.unlink
    rig.edit(session_id, [("write", b"workspace/later", 100, 1)])
    info, tree = await save_tree(rig, session_id)
    await rig.comes_back(info, tree)
    await rig.engine.checkpoints.delete(str(child.checkpoint_id))
    await rig.comes_back(info, tree)


async def test_a_damaged_checkpoint_can_be_deleted(rig: CheckpointEngine, session_id: str) -> None:
    info = await rig.save(session_id)
    rig.object(info, ".json").write_bytes(b"{}")
    await rig.engine.checkpoints.delete(str(info.checkpoint_id))
    assert [name.partition(".")[2] for name in rig.objects(session_id)] == ["deleted"]


async def test_saves_of_one_session_wait_for_each_other(
    rig: CheckpointEngine, session_id: str
) -> None:
    rig.edit(session_id, [("write", b"workspace/a", 100_000, 1)])
    taken = await asyncio.gather(*(rig.save(session_id, incremental=True) for _ in range(4)))
    assert sorted(one.checkpoint_id.number for one in taken) == [1, 2, 3, 4]
    for info in taken:
        await rig.comes_back(info, rig.tree(session_id))


async def test_a_save_of_a_session_that_is_restored_meanwhile_is_of_the_new_one(
    rig: CheckpointEngine, session_id: str
) -> None:
    rig.edit(session_id, [("write", b"workspace/a", 1000, 1)])
    info, tree = await save_tree(rig, session_id)
    rig.edit(session_id, [("write", b"workspace/b", 1000, 1)])
    _, later = await asyncio.gather(rig.restore(info, new=False), rig.save(session_id))
    assert rig.tree(session_id) == tree
    await rig.comes_back(later, tree)


async def test_a_save_while_its_session_is_destroyed_is_whole_or_refused(
    rig: CheckpointEngine, session_id: str
) -> None:
    del session_id
    for number in range(6):
        one = await rig.create()
        rig.edit(one, [("write", b"workspace/%d" % n, 20_000, n) for n in range(100)])
        tree = rig.tree(one)
        saving = asyncio.ensure_future(rig.save(one))
        await asyncio.sleep(0.006 * number)
        await rig.destroy(one)
        (result,) = await asyncio.gather(saving, return_exceptions=True)
        if isinstance(result, CheckpointInfo):
            await rig.comes_back(result, tree)
        else:
            assert isinstance(result, NotFound)
            assert rig.objects(one) == []
    await rig.engine.sessions.cleaned()
    assert rig.remains() == []


async def test_a_restore_in_place_is_refused_while_tasks_run(
    rig: CheckpointEngine, session_id: str
) -> None:
    rig.edit(session_id, [("write", b"workspace/a", 100, 1)])
    info = await rig.save(session_id)
    rig.edit(session_id, [("write", b"workspace/a", 100, 2)])
    running = asyncio.ensure_future(rig.python(session_id, WAIT + "print(6 * 7)"))
    await until_there(rig, session_id, "running")
    tree = rig.tree(session_id)
    with pytest.raises(WrongState) as refused:
        await rig.restore(info, new=False)
    assert refused.value.reason == "SESSION_BUSY"
    assert rig.tree(session_id) == tree
    rig.edit(session_id, [("write", b"workspace/go", 0, 0)])
    assert await running == "42\n"


async def test_cancelled_saves_and_restores_leave_nothing(
    rig: CheckpointEngine, session_id: str
) -> None:
    rig.edit(session_id, [("write", b"workspace/%d" % n, 50_000, n) for n in range(60)])
    info, tree = await save_tree(rig, session_id)
    known = set(rig.objects(session_id))
    ends: set[str] = set()
    for number in range(60 if SOAK else 16):
        work: Awaitable[object] = (
            rig.save(session_id) if number % 2 else rig.restore(info, new=number % 4 == 0)
        )
        job = asyncio.ensure_future(work)
        await asyncio.sleep(random.Random(number).random() * 0.12)
        job.cancel()
        await asyncio.wait([job])
        ends.add("cancelled" if job.cancelled() else "done")
        for path in (rig.state / "drafts").iterdir():
            raise AssertionError(path)
        whole = {name.partition(".")[0] for name in rig.objects() if name.endswith(".json")}
        assert {name.partition(".")[0] for name in rig.objects(session_id)} <= whole | {
            name.partition(".")[0] for name in known
        }, number
        assert rig.tree(session_id) == tree
        for view in rig.engine.sessions.list():
            if view.session_id != session_id:
                assert not job.cancelled()
                await rig.destroy(view.session_id)
    assert "cancelled" in ends
    await rig.engine.sessions.cleaned()
    for one in await rig.engine.checkpoints.list(session_id):
        await rig.comes_back(one, tree)


async def test_a_cancelled_save_can_be_cancelled_twice(
    rig: CheckpointEngine, session_id: str
) -> None:
    rig.edit(session_id, [("write", b"workspace/%d" % n, 50_000, n) for n in range(60)])
    for pause in (0.005, 0.02, 0.04):
        job = asyncio.ensure_future(rig.save(session_id))
        await asyncio.sleep(pause)
        job.cancel()
        await asyncio.sleep(0)
        job.cancel()
        await asyncio.wait([job])
    assert (await rig.save(session_id)).entries > 60


async def test_a_task_that_is_retried_after_a_restore_has_no_second_effect(
    rig: CheckpointEngine, session_id: str
) -> None:
    append = "print(open('log', 'a').write('x'))"
    task: dict[str, Any] = {"task_id": "t-1", "sequence": 1, "code": append}
    first = await rig.task(session_id, "run.python", **task)
    info, tree = await save_tree(rig, session_id)
    await rig.task(session_id, "run.python", task_id="t-2", sequence=2, code=append)
    for new in (True, False):
        one = (await rig.restore(info, new=new)).session_id
        again = await rig.task(one, "run.python", **task)
        assert (again.value, again.metadata.exit_code) == (first.value, 0)
        assert rig.tree(one) == tree
        # What came after the checkpoint is undone: its retry runs.
        await rig.task(one, "run.python", task_id="t-2", sequence=2, code=append)
        assert await rig.python(one, "print(open('log').read())") == "xx\n"


async def test_a_task_that_ran_while_it_was_saved_is_lost_after_a_restore(
    rig: CheckpointEngine, session_id: str
) -> None:
    task: dict[str, Any] = {
        "task_id": "t-1",
        "sequence": 1,
        "code": "open('log', 'a').write('x')" + WAIT,
    }
    running = asyncio.ensure_future(rig.task(session_id, "run.python", **task))
    await until_there(rig, session_id, "running")
    info = await rig.save(session_id)
    assert info.consistency == "frozen"
    copy = (await rig.restore(info)).session_id
    lost = await rig.task(copy, "run.python", **task)
    assert lost.metadata.ended_by is EndedBy.WORKER_LOST
    assert await rig.python(copy, "print(open('log').read())") == "x\n"
    rig.edit(session_id, [("write", b"workspace/go", 0, 0)])
    assert (await running).metadata.ended_by is EndedBy.EXIT


async def test_a_session_of_turns_is_saved_when_it_comes_to_rest(
    rig: CheckpointEngine, session_id: str
) -> None:
    del session_id
    one = await rig.create(durability=Durability.TURN, auto_restore=True)
    await rig.python(one, "open('a', 'w').write('first')")
    async with asyncio.timeout(10):
        while not rig.engine.checkpoints.last(one):
            await asyncio.sleep(0.01)
    (info,) = await rig.engine.checkpoints.list(one)
    assert info.trigger == "turn"
    tree = rig.tree(one)
    await rig.destroy(one)
    restored = await rig.engine.checkpoints.revive(one)
    assert restored is not None
    assert restored.session_id == one
    assert rig.tree(one) == tree


async def test_a_session_that_ends_for_idleness_is_saved_before(
    rig: CheckpointEngine, session_id: str
) -> None:
    """Also what it did at once, before anybody had looked whether there is something to save."""
    del session_id
    one = await rig.create(auto_restore=True, idle_timeout_s=1.0)
    rig.edit(one, [("write", b"workspace/a", 100, 1)])
    await rig.python(one, "open('b', 'w').write('b')")
    tree = rig.tree(one)
    async with asyncio.timeout(20):
        while one in [view.session_id for view in rig.engine.sessions.list()]:
            await rig.engine.sessions.reaper.sweep()
            await asyncio.sleep(0.1)
    restored = await rig.engine.checkpoints.revive(one)
    assert restored is not None
    assert restored.info.trigger == "idle"
    assert rig.tree(one) == tree


async def test_a_session_is_saved_at_its_interval_while_it_changes(
    rig: CheckpointEngine, session_id: str
) -> None:
    del session_id
    one = await rig.create(checkpoint_interval_s=1.0)
    running = asyncio.ensure_future(rig.python(one, WAIT))
    async with asyncio.timeout(15):
        while not rig.engine.checkpoints.last(one):
            await asyncio.sleep(0.01)
    (info,) = await rig.engine.checkpoints.list(one)
    assert (info.trigger, info.consistency) == ("interval", "frozen")
    rig.edit(one, [("write", b"workspace/go", 0, 0)])
    await running


async def test_a_result_of_a_sync_session_is_saved_when_it_is_told(
    rig: CheckpointEngine, session_id: str
) -> None:
    del session_id
    one = await rig.create(durability=Durability.SYNC, auto_restore=True)
    for number in (1, 2):
        task: dict[str, Any] = {"task_id": f"t-{number}", "sequence": number}
        code = f"open('a', 'w').write('{number}'); print({number})"
        told = await rig.task(one, "run.python", code=code, **task)
        tree = rig.tree(one)
        await rig.destroy(one)
        restored = await rig.engine.checkpoints.revive(one)
        assert restored is not None
        assert restored.info.trigger == "sync"
        assert rig.tree(one) == tree
        assert (await rig.task(one, "run.python", code=code, **task)).value == told.value
        assert rig.tree(one) == tree


async def test_a_session_that_did_not_ask_for_it_is_not_revived(
    rig: CheckpointEngine, session_id: str
) -> None:
    await rig.save(session_id)
    await rig.destroy(session_id)
    assert await rig.engine.checkpoints.revive(session_id) is None
    assert await rig.engine.checkpoints.revive("ses_" + "0" * 32) is None


async def test_an_exported_checkpoint_can_be_imported_where_it_was_deleted(
    rig: CheckpointEngine, session_id: str, tmp_path: Path
) -> None:
    taken = await saves(rig, session_id, 3)
    info, tree = taken[-1]
    target = tmp_path / "exported.tar.gz"
    assert await rig.engine.checkpoints.export(str(info.checkpoint_id), target) > 0
    with pytest.raises(AlreadyExists):
        await rig.engine.checkpoints.import_(target)
    for one, _ in taken:
        await rig.engine.checkpoints.delete(str(one.checkpoint_id))
    assert await rig.engine.checkpoints.import_(target) == info
    assert [one.checkpoint_id for one in await rig.engine.checkpoints.list(session_id)] == [
        info.checkpoint_id
    ]
    await rig.comes_back(info, tree)


async def test_an_import_and_saves_of_its_session_do_not_disturb_each_other(
    rig: CheckpointEngine, session_id: str, tmp_path: Path
) -> None:
    taken = await saves(rig, session_id, 3)
    info, tree = taken[-1]
    target = tmp_path / "exported.tar.gz"
    await rig.engine.checkpoints.export(str(info.checkpoint_id), target)
    for one, _ in taken:
        await rig.engine.checkpoints.delete(str(one.checkpoint_id))
    saving = [rig.save(session_id) for _ in range(3)]
    await asyncio.gather(rig.engine.checkpoints.import_(target), *saving)
    for one in await rig.engine.checkpoints.list(session_id):
        await rig.comes_back(one, tree)
    assert [one.ok async for one in rig.engine.checkpoints.verify(session_id)] == [True] * len(
        [name for name in rig.objects(session_id) if name.endswith(".json")]
    )


async def test_a_damaged_export_is_refused_and_leaves_nothing(
    rig: CheckpointEngine, session_id: str, tmp_path: Path
) -> None:
    rig.edit(session_id, [("write", b"workspace/a", 300, 4)])
    info, tree = await save_tree(rig, session_id)
    target = tmp_path / "exported.tar.gz"
    await rig.engine.checkpoints.export(str(info.checkpoint_id), target)
    await rig.engine.checkpoints.delete(str(info.checkpoint_id))
    known = rig.objects(session_id)
    whole = target.read_bytes()
    for rest in (whole[: len(whole) // 2], b""):
        target.write_bytes(rest)
        with pytest.raises(Corrupt):
            await rig.engine.checkpoints.import_(target)
        assert rig.objects(session_id) == known
    for at in range(0, len(whole), max(1, len(whole) // (200 if SOAK else 20))):
        target.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            assert await rig.engine.checkpoints.import_(target) == info
        except Corrupt:
            assert rig.objects(session_id) == known
        else:  # of no meaning: padding, times of the members
            await rig.comes_back(info, tree)
            await rig.engine.checkpoints.delete(str(info.checkpoint_id))
    assert list((rig.state / "drafts").iterdir()) == []


@pytest.mark.parametrize("name", ["a/b", "\n", "-x", "é", "x" * 129, " a"])
async def test_a_name_that_cannot_be_is_refused(
    rig: CheckpointEngine, session_id: str, name: str
) -> None:
    with pytest.raises(InvalidRequest):
        await rig.save(session_id, name=name)


@pytest.mark.skipif(not SOAK, reason="two workers are opened for it")
async def test_a_checkpoint_larger_than_the_disk_that_is_allowed_is_refused(
    tmp_path: Path,
) -> None:
    with state_directory() as state:
        async with checkpoint_engine(state, disk_bytes=32 * MIB) as rig:
            session_id = await rig.create()
            rig.edit(session_id, [("write", b"workspace/a", 20 * MIB, 4)])
            info = await rig.save(session_id)
            target = tmp_path / "exported.tar.gz"
            await rig.engine.checkpoints.export(str(info.checkpoint_id), target)
    with state_directory() as state:
        async with checkpoint_engine(state, disk_bytes=16 * MIB, max_disk_bytes=16 * MIB) as rig:
            await rig.engine.checkpoints.import_(target)
            with pytest.raises((InvalidRequest, LimitExceeded)):
                await rig.restore(info)
            assert rig.engine.sessions.list() == []


def modes(root: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}


async def test_nobody_else_may_read_what_is_stored(rig: CheckpointEngine, session_id: str) -> None:
    await rig.save(session_id)
    assert modes(rig.state / "store") <= {0o700, 0o600}
    assert stat.S_IMODE((rig.state / "drafts").stat().st_mode) == 0o700
