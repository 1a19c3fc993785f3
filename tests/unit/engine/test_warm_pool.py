"""Sandboxes booted ahead: hits, misses, demand, and when not to boot."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.core.limits import GIB, MIB, ResourceLimits
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.engine import warm_pool
from codegen_mcp.engine.hooks import NoHooks
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.testing.memory_pool import MemoryPool, until

LIMITS = ResourceLimits()
CONFIG = SessionPoolConfig(
    max_sessions=10,
    pool_size=2,
    keep_sessions=False,
    maximum_limits=replace(LIMITS, memory_bytes=2 * GIB, disk_bytes=2 * GIB, pids=1024),
)


class Recorded(NoHooks):
    def __init__(self) -> None:
        self.taken: list[bool] = []
        self.created: list[bool] = []
        self.depth = (0, 0)

    def pool_taken(self, *, hit: bool) -> None:
        self.taken.append(hit)

    def session_created(self, *, pooled: bool, seconds: float) -> None:
        self.created.append(pooled)

    def pool_depth(self, *, ready: int, target: int) -> None:
        self.depth = (ready, target)


async def test_memory_pids_and_cpu_are_rewritten_at_the_claim(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        await rig.warmed(2)
        limits = replace(LIMITS, memory_bytes=2 * GIB, pids=1000, cpu_millicores=250)
        view = await rig.pool.create(SessionConfig(limits=limits))
        assert rig.sandbox(view.session_id).limits == limits
        assert (rig.pool.warm.hits, rig.pool.warm.misses) == (1, 0)


@pytest.mark.parametrize(
    "config",
    [
        SessionConfig(language="python3.12"),
        SessionConfig(limits=replace(LIMITS, disk_bytes=2 * GIB)),
        SessionConfig(limits=replace(LIMITS, tmp_bytes=1 * MIB)),
    ],
)
async def test_what_cannot_be_rewritten_misses_is_counted_and_is_kept_ready_from_then_on(
    tmp_path: Path, config: SessionConfig
) -> None:
    hooks = Recorded()
    async with MemoryPool(tmp_path, CONFIG, hooks=hooks) as rig:
        await rig.warmed(2)
        await rig.pool.create(config)
        await rig.warmed(3)
        await rig.pool.create(config)
        assert hooks.taken == hooks.created == [False, True]


async def test_an_empty_pool_is_slower_and_never_refuses(tmp_path: Path) -> None:
    hooks = Recorded()
    async with MemoryPool(tmp_path, CONFIG, hooks=hooks) as rig:
        await rig.warmed(2)
        views = await asyncio.gather(*(rig.pool.create(SessionConfig()) for _ in range(10)))
        assert len(views) == 10
        assert sorted(hooks.created) == [False] * 8 + [True] * 2
        assert hooks.taken.count(True) == rig.pool.warm.hits == 2


async def test_a_waiting_sandbox_that_died_is_not_handed_out(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        await rig.warmed(2)
        dead = list(rig.backend.open)
        for sandbox in dead:
            sandbox.lose()
        view = await rig.pool.create(SessionConfig())
        assert rig.sandbox(view.session_id) not in dead
        assert rig.pool.warm.misses == 1
        await until(lambda: all(sandbox.closed for sandbox in dead))


async def test_sessions_and_waiting_sandboxes_together_never_exceed_the_limit(
    tmp_path: Path,
) -> None:
    async with MemoryPool(tmp_path, replace(CONFIG, max_sessions=3)) as rig:
        await rig.warmed(2)
        await rig.pool.create(SessionConfig())
        await rig.warmed(2)
        await rig.pool.create(SessionConfig(language="python3.12"))
        await until(lambda: rig.pool.warm.depth == 1 and len(rig.backend.open) == 3)
        await rig.pool.create(SessionConfig())
        assert len(rig.backend.open) == 3
        assert rig.pool.warm.occupied == 0


async def test_the_pool_grows_with_demand_and_shrinks_after(tmp_path: Path) -> None:
    hooks = Recorded()
    async with MemoryPool(tmp_path, replace(CONFIG, max_sessions=100), hooks=hooks) as rig:
        await rig.warmed(2)
        for _ in range(60):
            view = await rig.pool.create(SessionConfig())
            await rig.pool.destroy(view.session_id, force=True)
        assert rig.pool.warm.target > 2
        await rig.warmed(rig.pool.warm.target)
        rig.clock.advance(60)
        assert rig.pool.warm.target == 2
        for _ in range(5):
            rig.clock.advance(warm_pool.TICK_S)
            rig.pool.warm.nudge()
            await asyncio.sleep(0.01)
        assert (rig.pool.warm.depth, hooks.depth) == (2, (2, 2))


async def test_a_kind_that_is_asked_for_no_more_is_let_go(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        await rig.pool.create(SessionConfig(language="python3.12"))
        await rig.warmed(3)
        rig.clock.advance(3600)
        rig.pool.warm.nudge()
        await until(lambda: rig.pool.warm.depth == 2)


async def test_nothing_is_booted_ahead_without_free_memory_or_disk(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path / "a", CONFIG, available_memory=lambda: 1 * MIB) as rig:
        await asyncio.sleep(0.02)
        assert rig.backend.boots == 0
        await rig.pool.create(SessionConfig())
    async with MemoryPool(tmp_path / "b", CONFIG, room_bytes=1 * GIB) as rig:
        await rig.warmed(1)
        await asyncio.sleep(0.02)
        assert rig.backend.boots == 1


async def test_one_boots_at_a_time(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, replace(CONFIG, pool_size=5)) as rig:
        rig.backend.gate = asyncio.Event()
        await until(lambda: rig.backend.boots == 1)
        await asyncio.sleep(0.02)
        assert rig.backend.boots == 1
        rig.backend.gate.set()
        await rig.warmed(5)


async def test_boots_that_fail_are_tried_again_ever_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_pool, "BACKOFF_S", (0.01, 0.05))
    rig = MemoryPool(tmp_path, CONFIG)
    rig.backend.fail = [SandboxUnavailable("no"), ValueError("bug"), SandboxUnavailable("no")]
    async with rig:
        await rig.warmed(2)
        assert rig.backend.boots == 5
        assert rig.pool.warm.occupied == 2
        await until(lambda: rig.kept["directories"] == 2)


async def test_a_pool_of_size_0_boots_nothing_ahead(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, replace(CONFIG, pool_size=0)) as rig:
        await rig.pool.create(SessionConfig())
        assert (rig.backend.boots, rig.pool.warm.target) == (1, 0)


async def test_a_sandbox_lost_during_the_claim_is_replaced_by_a_boot(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        await rig.warmed(2)

        async def lost(env: object) -> None:
            raise SandboxUnavailable("lost")

        for sandbox in rig.backend.open:
            sandbox.set_environment = lost  # type: ignore[method-assign,assignment]
        view = await rig.pool.create(SessionConfig(env={"A": "1"}))
        assert rig.sandbox(view.session_id).env == {"A": "1"}
