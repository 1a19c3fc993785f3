"""Sessions that nobody uses, or that are too old, end by themselves."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.session import SessionConfig, SessionState
from codegen_mcp.engine.hooks import NoHooks
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.testing.memory_pool import MemoryPool, until

CONFIG = SessionPoolConfig(
    pool_size=0,
    keep_sessions=False,
    idle_timeout_s=100,
    max_age_s=1000,
    grace_s=600,
    sweep_interval_s=3600,
)


class Reasons(NoHooks):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def session_destroyed(self, *, reason: str, seconds: float) -> None:
        self.seen.append(reason)


async def test_a_session_without_use_ends_at_its_idle_timeout_and_not_before(
    tmp_path: Path,
) -> None:
    hooks = Reasons()
    async with MemoryPool(tmp_path, CONFIG, hooks=hooks) as rig:
        await rig.pool.create(SessionConfig())
        rig.clock.advance(99)
        await rig.pool.reaper.sweep()
        assert len(rig.pool.list()) == 1
        rig.clock.advance(1)
        await rig.pool.reaper.sweep()
        await until(lambda: rig.pool.list() == [])
        assert hooks.seen == ["idle"]


async def test_its_own_timeout_wins_and_can_be_changed(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        view = await rig.pool.create(SessionConfig(idle_timeout_s=10))
        await rig.pool.set_idle_timeout(view.session_id, 50)
        stored = json.loads((rig.state.session(view.session_id) / "session.json").read_text())
        assert stored["idle_timeout_s"] == 50
        rig.clock.advance(49)
        await rig.pool.reaper.sweep()
        assert len(rig.pool.list()) == 1
        with pytest.raises(InvalidRequest):
            await rig.pool.set_idle_timeout(view.session_id, 0)
        rig.clock.advance(50)
        await rig.pool.reaper.sweep()
        await until(lambda: rig.pool.list() == [])


async def test_every_use_counts_and_a_task_under_way_is_use(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        view = await rig.pool.create(SessionConfig())
        session = rig.pool.session(view.session_id)
        with session.activity():
            rig.clock.advance(500)
            await rig.pool.reaper.sweep()
        rig.clock.advance(99)
        await session.workspace.write("f", b"", create_dirs=False, mode=None)
        rig.clock.advance(99)
        await rig.pool.update_metadata(view.session_id, {"a": "b"}, replace=False)
        rig.clock.advance(99)
        await rig.pool.reaper.sweep()
        assert [one.session_id for one in rig.pool.list()] == [view.session_id]


async def test_a_long_upload_keeps_the_session(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        view = await rig.pool.create(SessionConfig())
        more = asyncio.Event()
        begun = asyncio.Event()

        async def chunks():  # type: ignore[no-untyped-def]
            yield b"a"
            begun.set()
            await more.wait()
            yield b"b"

        upload = asyncio.create_task(
            rig.pool.workspace(view.session_id).write_chunks(
                "f",
                chunks(),
                create_dirs=False,
                mode=None,
                expected_size=None,
                expected_sha256=None,
            )
        )
        await begun.wait()
        rig.clock.advance(900)
        await rig.pool.reaper.sweep()
        more.set()
        assert (await upload)[0] == 2
        assert len(rig.pool.list()) == 1


async def test_the_maximum_age_ends_also_a_session_in_use_after_the_grace(tmp_path: Path) -> None:
    hooks = Reasons()
    async with MemoryPool(tmp_path, replace(CONFIG, grace_s=0.01), hooks=hooks) as rig:
        session = rig.pool.session((await rig.pool.create(SessionConfig())).session_id)
        cancelled = asyncio.Event()

        async def task() -> None:
            with session.activity(lambda reason: cancelled.set()):
                await cancelled.wait()

        running = asyncio.create_task(task())
        await asyncio.sleep(0)
        rig.clock.advance(1000)
        await rig.pool.reaper.sweep()
        await running
        await until(lambda: rig.pool.list() == [])
        assert hooks.seen == ["age"]


async def test_a_sweep_closes_the_door_at_once(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        session = rig.pool.session((await rig.pool.create(SessionConfig())).session_id)
        rig.clock.advance(100)
        await rig.pool.reaper.sweep()
        assert session.state is SessionState.DRAINING


async def test_a_lost_sandbox_is_noticed_without_a_use(tmp_path: Path) -> None:
    lost: list[bool] = []

    class Hooks(NoHooks):
        def sandbox_lost(self) -> None:
            lost.append(True)

    async with MemoryPool(tmp_path, CONFIG, hooks=Hooks()) as rig:
        view = await rig.pool.create(SessionConfig())
        rig.sandbox(view.session_id).lose()
        await rig.pool.reaper.sweep()
        assert lost == [True]


async def test_the_time_of_the_last_use_reaches_the_disk(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        view = await rig.pool.create(SessionConfig())
        path = rig.state.session(view.session_id) / "session.json"
        await rig.pool.reaper.sweep()
        rig.clock.advance(70)
        rig.pool.session(view.session_id).touch()
        rig.pool.session(view.session_id).note_task("t1")
        await rig.pool.reaper.sweep()
        stored = json.loads(path.read_text())
        assert stored["last_activity_ms"] == view.created_at_ms + 70_000
        assert stored["recent_tasks"] == ["t1"]


async def test_it_sweeps_by_itself(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, replace(CONFIG, sweep_interval_s=0.01)) as rig:
        await rig.pool.create(SessionConfig())
        rig.clock.advance(100)
        await until(lambda: rig.pool.list() == [])
