"""A sandbox that waits is handed out as it was put by, once, or not at all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.engine import canary, warm_pool
from codegen_mcp.engine.canary import Change
from codegen_mcp.engine.hooks import NoHooks
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.warm_pool import WarmPool
from codegen_mcp.testing.memory_pool import MemoryPool, until

CONFIG = SessionPoolConfig(max_sessions=10, pool_size=2, keep_sessions=False)


class Told(NoHooks):
    def __init__(self) -> None:
        self.changes: list[str] = []

    def pool_tampered(self, *, change: str) -> None:
        self.changes.append(change)


def waiting(rig: MemoryPool) -> list[Slot]:
    return list(rig.pool.warm._ready)


def add(volume: Path) -> None:
    (volume / "workspace" / "sitecustomize.py").write_text("import os")


def plant_link(volume: Path) -> None:
    (volume / "venv" / "python").symlink_to("/bin/sh")


def loosen(volume: Path) -> None:
    (volume / "workspace").chmod(0o777)


def change_and_restore(volume: Path) -> None:
    root = volume / "workspace"
    before = root.stat()
    (root / "x").write_text("x")
    (root / "x").unlink()
    os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(volume: Path) -> None:
    (volume / "workspace").rename(volume / "old")
    (volume / "workspace").mkdir()


def flood(volume: Path) -> None:
    for number in range(canary.MOST_NAMES + 1):
        (volume / "workspace" / str(number)).touch()


def take_away(volume: Path) -> None:
    (volume / "workspace").rmdir()


@pytest.mark.parametrize(
    "tamper", [add, plant_link, loosen, change_and_restore, swap, flood, take_away]
)
async def test_a_waiting_sandbox_whose_files_changed_is_thrown_away_counted_and_replaced(
    tmp_path: Path, tamper: object
) -> None:
    told = Told()
    async with MemoryPool(tmp_path, CONFIG, hooks=told) as rig:
        await rig.warmed(2)
        bad = waiting(rig)
        for slot in bad:
            tamper(slot.volume.root)  # type: ignore[operator]
        view = await rig.pool.create(SessionConfig())
        assert rig.pool.session(view.session_id)._slot not in bad
        assert told.changes == ["files", "files"]
        assert (rig.pool.warm.hits, rig.pool.warm.misses) == (0, 1)
        await until(lambda: rig.pool.warm.depth == 2)


async def test_one_that_nobody_asks_for_is_found_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    async with MemoryPool(tmp_path, CONFIG, hooks=told) as rig:
        await rig.warmed(2)
        add(waiting(rig)[0].volume.root)
        rig.clock.advance(warm_pool.TICK_S)
        rig.pool.warm.nudge()
        await until(lambda: told.changes == ["files"])
        await rig.warmed(2)


async def test_what_was_a_sessions_cannot_wait_again(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        await rig.warmed(1)
        view = await rig.pool.create(SessionConfig())
        slot = rig.pool.session(view.session_id)._slot
        with pytest.raises(WrongState, match="served a session"):
            canary.park(slot)
        assert canary.changed(slot) is Change.PROCESSES


@given(
    steps=st.lists(
        st.sampled_from(["create", "create", "other kind", "end", "lose", "tamper"]),
        min_size=1,
        max_size=30,
    )
)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
async def test_no_sandbox_ever_serves_two_sessions(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    await serve_each_once(tmp_path_factory.mktemp("pool"), steps)


async def test_a_pool_that_hands_one_out_again_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = WarmPool.take

    def take_and_keep(self: WarmPool, *asked: Any) -> Slot | None:
        slot = take(self, *asked)
        if slot is not None:
            slot.used = False
            self._ready.insert(0, slot)
        return slot

    monkeypatch.setattr(WarmPool, "take", take_and_keep)
    monkeypatch.setattr(canary, "changed", lambda _: None)
    with pytest.raises(AssertionError):
        await serve_each_once(tmp_path, ["create", "create", "create"])


async def serve_each_once(root: Path, steps: list[str]) -> None:
    """Do the steps; no sandbox may be seen under two sessions."""
    served: dict[int, str] = {}
    kept: list[object] = []  # so that no identity is used twice
    async with MemoryPool(root, CONFIG) as rig:
        live: list[str] = []
        for step in steps:
            if step in ("create", "other kind") and len(live) < 8:
                limits = ResourceLimits()
                if step == "other kind":
                    limits = replace(limits, tmp_bytes=limits.tmp_bytes // 2)
                view = await rig.pool.create(SessionConfig(limits=limits))
                sandbox = rig.sandbox(view.session_id)
                assert served.setdefault(id(sandbox), view.session_id) == view.session_id
                kept.append(sandbox)
                live.append(view.session_id)
            elif step == "end" and live:
                await rig.pool.destroy(live.pop(0), force=True)
            elif step == "lose" and waiting(rig):
                waiting(rig)[0].sandbox.lose()  # type: ignore[union-attr]
            elif step == "tamper" and waiting(rig):
                (waiting(rig)[0].volume.root / "workspace" / "x").touch()
        for session_id in live:
            assert not any((rig.state.session(session_id) / "volume" / "workspace").iterdir())
        assert len(served) == len(kept)
