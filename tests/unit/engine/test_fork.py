"""Forks: who gets what, who waits, and that nothing is left of one that failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.errors import (
    Draining,
    Full,
    InvalidRequest,
    NotFound,
    SandboxUnavailable,
    WrongState,
)
from codegen_mcp.core.limits import GIB, MIB, ResourceLimits
from codegen_mcp.core.session import SessionConfig, SessionState
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.volumes.base import Volume
from codegen_mcp.testing.memory_host import MemoryVolume, MemoryVolumes
from codegen_mcp.testing.memory_pool import MemoryPool, until

LIMITS = ResourceLimits(disk_bytes=64 * MIB, file_size_bytes=64 * MIB)
CONFIG = SessionPoolConfig(
    max_sessions=10,
    pool_size=0,
    keep_sessions=False,
    grace_s=0.2,
    default_limits=LIMITS,
    maximum_limits=replace(LIMITS, memory_bytes=2 * GIB),
)
ASKED = SessionConfig(
    workspace_id="w",
    user_id="u",
    env={"A": "1"},
    metadata={"k": "v"},
    limits=replace(LIMITS, memory_bytes=1 * GIB),
    idle_timeout_s=77.0,
    language="python3.12",
)


class Gated(MemoryVolumes):
    """Clones wait for a gate, and fail where they are told to."""

    def __init__(self, room_bytes: int = 1024 * GIB) -> None:
        super().__init__(room_bytes)
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = 0
        self.made = 0
        self.fail_at = -1

    async def clone(
        self, source: Volume, directory: Path, size_bytes: int, identity: HostIdentity | None
    ) -> MemoryVolume:
        self.under_way += 1
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        self.made += 1
        if self.made == self.fail_at:
            raise OSError(28, "No space left on device")
        return await super().clone(source, directory, size_bytes, identity)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[MemoryPool]:
    async with gated(tmp_path) as made:
        yield made
    assert not any(made.kept.values()), made.kept


def gated(path: Path, config: SessionPoolConfig = CONFIG, room: int = 1024 * GIB) -> MemoryPool:
    return MemoryPool(path, config, volumes=Gated(room))


def volumes(rig: MemoryPool) -> Gated:
    assert isinstance(rig.volumes, Gated)
    return rig.volumes


async def parent_of(rig: MemoryPool) -> str:
    session_id = (await rig.pool.create(ASKED)).session_id
    await rig.pool.workspace(session_id).write("f", b"parent", create_dirs=False, mode=None)
    return session_id


async def read(rig: MemoryPool, session_id: str) -> bytes:
    return (await rig.pool.workspace(session_id).read("f", 0, 100))[0]


async def test_children_have_all_of_the_parent_but_its_handle_and_its_tasks(
    rig: MemoryPool,
) -> None:
    parent = await parent_of(rig)
    rig.pool.session(parent).note_task("task-1")
    rig.clock.advance(10)
    children = await rig.pool.fork(parent, 3)
    before = rig.pool.get(parent)
    assert len({view.session_id for view in children} | {parent}) == 4
    users = {rig.pool.session(view.session_id).identity for view in [before, *children]}
    assert len(users) == 4
    for view in children:
        assert view.state is SessionState.READY
        assert (view.workspace_id, view.user_id, view.metadata) == ("w", "u", {"k": "v"})
        assert (view.limits, view.language) == (ASKED.limits, "python3.12")
        assert (view.incarnation, view.recent_tasks, view.active_tasks) == (1, (), 0)
        assert view.created_at_ms == before.created_at_ms + 10_000
        assert rig.pool.session(view.session_id).idle_timeout_s == 77.0
        sandbox = rig.sandbox(view.session_id)
        assert (sandbox.env, sandbox.limits) == ({"A": "1"}, ASKED.limits)
        assert sandbox.directory == rig.state.session(view.session_id)
        assert await read(rig, view.session_id) == b"parent"
        assert not (rig.state.session(view.session_id) / "tasks.jsonl").exists()
    assert before.recent_tasks == ("task-1",)
    assert rig.pool.list()[0].session_id == parent
    assert rig.pool.capacity().active == 4


async def test_neither_sees_what_the_other_writes(rig: MemoryPool) -> None:
    parent = await parent_of(rig)
    one, two = [view.session_id for view in await rig.pool.fork(parent, 2)]
    for session_id in (parent, one, two):
        await rig.pool.workspace(session_id).write(
            "f", session_id.encode(), create_dirs=False, mode=None
        )
    for session_id in (parent, one, two):
        assert await read(rig, session_id) == session_id.encode()


@pytest.mark.parametrize("count", [0, -1, 65])
async def test_a_count_out_of_range_is_refused(rig: MemoryPool, count: int) -> None:
    parent = await parent_of(rig)
    with pytest.raises(InvalidRequest, match=r"1 to 64"):
        await rig.pool.fork(parent, count)


async def test_a_session_that_is_not_there_cannot_be_forked(rig: MemoryPool) -> None:
    with pytest.raises(NotFound):
        await rig.pool.fork("ses_" + "0" * 32, 1)


async def test_a_session_with_a_task_under_way_is_refused_and_goes_on(rig: MemoryPool) -> None:
    parent = await parent_of(rig)
    session = rig.pool.session(parent)
    with session.activity(), pytest.raises(WrongState, match="wait for its tasks") as caught:
        await rig.pool.fork(parent, 1)
    assert caught.value.reason == "SESSION_BUSY"
    assert len(await rig.pool.fork(parent, 1)) == 1


async def test_what_comes_while_files_are_copied_waits_and_then_is_done(rig: MemoryPool) -> None:
    parent = await parent_of(rig)
    session = rig.pool.session(parent)
    volumes(rig).gate.clear()
    fork = asyncio.create_task(rig.pool.fork(parent, 2))
    await until(lambda: volumes(rig).under_way == 1)
    ran = asyncio.Event()

    async def task() -> None:
        with session.activity():
            async with session.run_slot():
                ran.set()

    run = asyncio.create_task(task())
    write = asyncio.create_task(
        session.workspace.write("f", b"later", create_dirs=False, mode=None)
    )
    assert await read(rig, parent) == b"parent"
    for _ in range(20):
        await asyncio.sleep(0)
    assert not ran.is_set()
    assert not write.done()
    volumes(rig).gate.set()
    await asyncio.gather(run, write)
    children = await fork
    assert await read(rig, parent) == b"later"
    for view in children:
        assert await read(rig, view.session_id) == b"parent"


async def test_two_forks_of_one_session_come_one_after_the_other(rig: MemoryPool) -> None:
    parent = await parent_of(rig)
    some, more = await asyncio.gather(rig.pool.fork(parent, 2), rig.pool.fork(parent, 3))
    assert len({view.session_id for view in [*some, *more]}) == 5


async def test_one_too_many_is_refused_before_anything_is_copied(rig: MemoryPool) -> None:
    parent = await parent_of(rig)
    with pytest.raises(Full, match="all 10 sessions") as caught:
        await rig.pool.fork(parent, 10)
    assert caught.value.retry_after_s
    assert volumes(rig).made == 0
    assert len(await rig.pool.fork(parent, 9)) == 9


async def test_children_being_made_count_towards_the_limit(rig: MemoryPool) -> None:
    parent = await parent_of(rig)
    volumes(rig).gate.clear()
    fork = asyncio.create_task(rig.pool.fork(parent, 9))
    await until(lambda: volumes(rig).under_way == 1)
    with pytest.raises(Full):
        await rig.pool.create(SessionConfig())
    volumes(rig).gate.set()
    assert len(await fork) == 9


async def test_disk_for_all_of_them_is_needed_before_anything_is_copied(tmp_path: Path) -> None:
    async with gated(tmp_path, room=4 * LIMITS.disk_bytes) as rig:
        parent = await parent_of(rig)
        with pytest.raises(Full, match="fork fewer") as caught:
            await rig.pool.fork(parent, 4)
        assert caught.value.reason == "DISK_FULL"
        assert volumes(rig).made == 0
        assert len(await rig.pool.fork(parent, 3)) == 3


async def test_sandboxes_that_wait_give_their_disk_to_children(tmp_path: Path) -> None:
    config = replace(CONFIG, pool_size=2)
    async with gated(tmp_path, config, room=3 * LIMITS.disk_bytes) as rig:
        parent = await parent_of(rig)
        await rig.warmed(2)
        assert len(await rig.pool.fork(parent, 2)) == 2


@pytest.mark.parametrize("fail_at", [1, 2, 5])
async def test_a_copy_that_fails_takes_all_others_with_it(rig: MemoryPool, fail_at: int) -> None:
    parent = await parent_of(rig)
    kept = rig.kept
    volumes(rig).fail_at = fail_at
    with pytest.raises(Full, match="disk"):
        await rig.pool.fork(parent, 6)
    await rig.pool.cleaned()
    assert rig.kept == kept
    assert [view.session_id for view in rig.pool.list()] == [parent]
    volumes(rig).fail_at = -1
    assert len(await rig.pool.fork(parent, 9)) == 9


async def test_a_boot_that_fails_takes_all_others_with_it(rig: MemoryPool) -> None:
    parent = await parent_of(rig)
    kept = rig.kept
    boots = iter([False, False, True])
    rig.backend.refuse = lambda spec: next(boots, False)
    with pytest.raises(SandboxUnavailable):
        await rig.pool.fork(parent, 5)
    await rig.pool.cleaned()
    assert rig.kept == kept
    assert rig.pool.capacity().active == 1


async def test_a_file_access_that_cannot_be_opened_takes_all_others_with_it(
    rig: MemoryPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = await parent_of(rig)
    kept = rig.kept
    real, opened = rig.pool._forker._open_workspace, []

    def third_fails(slot):  # type: ignore[no-untyped-def]
        opened.append(slot)
        if len(opened) == 3:
            raise OSError(24, "Too many open files")
        return real(slot)

    monkeypatch.setattr(rig.pool._forker, "_open_workspace", third_fails)
    with pytest.raises(OSError, match="Too many"):
        await rig.pool.fork(parent, 4)
    await until(lambda: rig.pool.capacity().active == 1)
    await rig.pool.cleaned()
    assert rig.kept == kept


async def test_a_caller_who_leaves_leaves_nothing_at_whatever_moment(rig: MemoryPool) -> None:
    parent = await parent_of(rig)
    kept = rig.kept
    done = 0
    for steps in range(0, 60, 2):
        fork = asyncio.create_task(rig.pool.fork(parent, 3))
        for _ in range(steps):
            await asyncio.sleep(0)
        fork.cancel()
        await asyncio.wait([fork])
        if not fork.cancelled():
            done += 1
            for view in fork.result():
                await rig.pool.destroy(view.session_id, force=True)
        await until(lambda: rig.pool.capacity().active == 1)
        await rig.pool.cleaned()
        assert rig.kept == kept
        assert await read(rig, parent) == b"parent"
    assert done < 30
    assert rig.pool.session(parent).active_tasks == 0


async def test_a_parent_that_is_destroyed_meanwhile_takes_the_fork_with_it(
    rig: MemoryPool,
) -> None:
    parent = await parent_of(rig)
    volumes(rig).gate.clear()
    fork = asyncio.create_task(rig.pool.fork(parent, 2))
    await until(lambda: volumes(rig).under_way == 1)
    rig.pool.session(parent).close_door()
    volumes(rig).gate.set()
    with pytest.raises(NotFound):
        await fork
    await rig.pool.destroy(parent, force=True)
    await rig.pool.cleaned()
    assert not any(rig.kept.values())


async def test_a_pool_that_closes_ends_forks_under_way(tmp_path: Path) -> None:
    async with gated(tmp_path) as rig:
        parent = await parent_of(rig)
        volumes(rig).gate.clear()
        fork = asyncio.create_task(rig.pool.fork(parent, 2))
        await until(lambda: volumes(rig).under_way == 1)
        await rig.pool.close()
        with pytest.raises(Draining):
            await fork
        assert not any(rig.kept.values())


async def test_children_are_adopted_by_the_next_start(tmp_path: Path) -> None:
    rig = gated(tmp_path, replace(CONFIG, keep_sessions=True))
    await rig.__aenter__()
    parent = await parent_of(rig)
    children = [view.session_id for view in await rig.pool.fork(parent, 2)]
    await rig.crash()
    async with gated(tmp_path) as again:
        assert {view.session_id for view in again.pool.list()} == {parent, *children}
        for child in children:
            assert await read(again, child) == b"parent"
            assert again.pool.get(child).incarnation == 2
