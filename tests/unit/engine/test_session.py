"""One session: states, activity, a lost sandbox, usage."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Full, NotFound, SandboxUnavailable
from codegen_mcp.core.limits import ResourceLimits, Usage
from codegen_mcp.core.session import SessionConfig, SessionState
from codegen_mcp.engine.hooks import NoHooks
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.engine.session import Session
from codegen_mcp.testing.memory_pool import MemoryPool, until

COLD = SessionPoolConfig(pool_size=0, keep_sessions=False)


async def session_of(rig: MemoryPool) -> Session:
    return rig.pool.session((await rig.pool.create(SessionConfig())).session_id)


async def test_it_is_busy_while_tasks_are_under_way_and_idle_after(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        session = await session_of(rig)
        assert session.state is SessionState.READY
        with session.activity():
            with session.activity():
                assert (session.state, session.active_tasks) == (SessionState.BUSY, 2)
            assert session.state is SessionState.BUSY
        assert (session.state, session.active_tasks) == (SessionState.IDLE, 0)


async def test_more_tasks_than_the_limit_are_refused(tmp_path: Path) -> None:
    limits = ResourceLimits(concurrent_tasks=1)
    async with MemoryPool(tmp_path, replace(COLD, default_limits=limits)) as rig:
        session = await session_of(rig)
        with session.activity():
            with pytest.raises(Full, match="concurrent_tasks"), session.activity():
                pass
            assert session.active_tasks == 1
        with session.activity():
            pass


async def test_the_last_tasks_are_remembered_newest_first(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        session = await session_of(rig)
        for number in range(25):
            session.note_task(f"t{number}")
        session.note_task("t10")
        recent = session.view().recent_tasks
        assert recent[:3] == ("t10", "t24", "t23")
        assert len(recent) == 20


async def test_a_lost_sandbox_is_replaced_at_the_next_use_with_files_kept(
    tmp_path: Path,
) -> None:
    lost = 0

    class Hooks(NoHooks):
        def sandbox_lost(self) -> None:
            nonlocal lost
            lost += 1

    async with MemoryPool(tmp_path, COLD, hooks=Hooks()) as rig:
        session = await session_of(rig)
        await session.workspace.write("f", b"kept", create_dirs=False, mode=None)
        old = rig.sandbox(session.session_id)
        old.lose()
        view = session.view()
        assert view.state is SessionState.FAILED
        assert "next use" in view.note
        assert await session.workspace.read("f", 0, 10) == (b"kept", 4)
        with session.activity():
            new = await session.sandbox()
            assert session.state is SessionState.BUSY
        assert (new.alive, new is old, old.closed, lost) == (True, False, True, 1)
        assert session.state is SessionState.IDLE
        assert "replaced" in session.view().note
        assert await session.workspace.read("f", 0, 10) == (b"kept", 4)
        assert len(rig.cgroups.groups) == 1


async def test_those_who_need_the_sandbox_at_once_share_one_boot(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        session = await session_of(rig)
        rig.sandbox(session.session_id).lose()
        rig.backend.gate = asyncio.Event()
        uses = [asyncio.create_task(session.sandbox()) for _ in range(5)]
        await until(lambda: rig.backend.boots == 2)
        assert session.state is SessionState.INITIALIZING
        uses[0].cancel()
        rig.backend.gate.set()
        found = await asyncio.gather(*uses[1:])
        assert len(set(map(id, found))) == 1
        assert rig.backend.boots == 2


async def test_a_boot_that_fails_is_said_and_tried_again_at_the_next_use(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        session = await session_of(rig)
        rig.sandbox(session.session_id).lose()
        rig.backend.fail = [SandboxUnavailable("no memory")]
        with pytest.raises(SandboxUnavailable, match="no memory"):
            await session.sandbox()
        assert session.state is SessionState.FAILED
        assert "no memory" in session.view().note
        await session.sandbox()
        assert session.state is SessionState.IDLE


async def test_a_destroy_during_the_boot_ends_both(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        session = await session_of(rig)
        rig.sandbox(session.session_id).lose()
        rig.backend.gate = asyncio.Event()
        use = asyncio.create_task(session.sandbox())
        await until(lambda: rig.backend.boots == 2)
        await rig.pool.destroy(session.session_id, force=True)
        with pytest.raises(NotFound):
            await use
        await until(lambda: not any(rig.kept.values()))


async def test_a_failed_session_can_be_destroyed(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        session = await session_of(rig)
        rig.sandbox(session.session_id).lose()
        assert session.state is SessionState.FAILED
        await rig.pool.destroy(session.session_id, force=False)
        assert rig.pool.list() == []


async def test_the_cpu_rate_is_a_mean_and_the_peak_is_the_highest_seen(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        session = await session_of(rig)
        sandbox = rig.sandbox(session.session_id)
        sandbox.used = Usage(cpu_us=1_000_000, memory_bytes=50, memory_peak_bytes=900)
        rig.clock.advance(1)
        assert session.view().usage.cpu_millicores == 1000
        rig.clock.advance(2)
        sandbox.used = Usage(cpu_us=2_000_000, memory_bytes=40, memory_peak_bytes=40)
        usage = session.view().usage
        assert (usage.cpu_millicores, usage.memory_bytes, usage.memory_peak_bytes) == (500, 40, 900)
        rig.clock.advance(0.01)
        assert session.view().usage.cpu_millicores == 500
        sandbox.lose()
        rig.clock.advance(1)
        new = await session.sandbox()
        assert new is rig.sandbox(session.session_id)
        rig.sandbox(session.session_id).used = Usage(cpu_us=5)
        usage = session.view().usage
        assert (usage.cpu_us, usage.cpu_millicores) == (2_000_005, 0)


async def test_a_task_whose_cancel_fails_does_not_save_the_session(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, replace(COLD, grace_s=0)) as rig:
        session = await session_of(rig)
        stop = asyncio.Event()

        def cancel(reason: str) -> None:
            stop.set()
            raise RuntimeError("a bug")

        async def task() -> None:
            with session.activity(cancel):
                await stop.wait()

        running = asyncio.create_task(task())
        await asyncio.sleep(0)
        await rig.pool.destroy(session.session_id, force=False)
        await running
