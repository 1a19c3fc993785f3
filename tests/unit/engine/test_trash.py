"""What ended sessions leave is given back, also when the kernel is not ready for it at once."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.engine import slot_factory, trash
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.testing.memory_host import MemoryCgroup
from codegen_mcp.testing.memory_pool import MemoryPool, until

CONFIG = SessionPoolConfig(pool_size=0, keep_sessions=False)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trash, "RETRY_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(slot_factory, "REMOVE_PAUSE_S", 0.0001)


async def test_a_group_that_is_busy_for_a_moment_is_removed_later(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        view = await rig.pool.create(SessionConfig())
        rig.cgroups.busy = slot_factory.REMOVE_TRIES + 5
        await rig.pool.destroy(view.session_id, force=True)
        assert rig.identities.leased
        await rig.pool.cleaned()
        assert not any(rig.kept.values())


async def test_a_group_that_never_empties_keeps_its_host_user_and_holds_up_nobody(
    tmp_path: Path,
) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        stuck, other = [(await rig.pool.create(SessionConfig())).session_id for _ in range(2)]
        user = rig.pool.session(stuck).identity
        rig.cgroups.busy = 10**9
        await rig.pool.destroy(stuck, force=True)
        await rig.pool.cleaned()
        rig.cgroups.busy = 0
        await rig.pool.destroy(other, force=True)
        await rig.pool.cleaned()
        assert user is not None
        assert rig.identities.leased == {user.uid}


async def test_files_that_cannot_be_removed_now_are_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.rmdir, []

    def busy(path: str | bytes, **more: int) -> None:
        if path == "volume" or path == b"volume":
            refused.append(path)
            if len(refused) == 1:
                raise OSError(16, "Device or resource busy")
        real(path, **more)

    async with MemoryPool(tmp_path, CONFIG) as rig:
        view = await rig.pool.create(SessionConfig())
        monkeypatch.setattr(os, "rmdir", busy)
        await rig.pool.destroy(view.session_id, force=True)
        await rig.pool.cleaned()
        assert len(refused) == 2
        assert not any(rig.kept.values())


async def test_what_is_left_at_the_stop_lies_in_the_trash_for_the_next_start(
    tmp_path: Path,
) -> None:
    async with MemoryPool(tmp_path, replace(CONFIG, pool_size=0)) as rig:
        for number in range(50):
            (rig.state.trash / str(number) / "deep").mkdir(parents=True)
    async with MemoryPool(tmp_path, CONFIG) as rig:
        await rig.pool.cleaned()
        assert rig.kept["directories"] == 0


class Refuses:
    """A kernel that makes no groups, or takes no limits."""

    def __init__(self, rig: MemoryPool, step: str) -> None:
        self._step = step
        self._create = rig.cgroups.create
        rig.cgroups.create = self.create  # type: ignore[method-assign]

    def create(self, name: str) -> MemoryCgroup:
        if self._step == "create":
            raise OSError(28, "No space left on device")
        group = self._create(name)

        def set_limits(limits: ResourceLimits) -> None:
            raise OSError(22, "Invalid argument")

        group.set_limits = set_limits  # type: ignore[method-assign]
        return group


@pytest.mark.parametrize("step", ["create", "limit"])
async def test_a_session_that_cannot_be_limited_is_refused_and_undone(
    tmp_path: Path, step: str
) -> None:
    async with MemoryPool(tmp_path, CONFIG) as rig:
        Refuses(rig, step)
        with pytest.raises(SandboxUnavailable, match="control group"):
            await rig.pool.create(SessionConfig())
        await rig.pool.cleaned()
        assert not any(rig.kept.values())


async def test_stopping_waits_for_what_is_being_deleted(tmp_path: Path) -> None:
    rig = MemoryPool(tmp_path, CONFIG)
    async with rig:
        views = [await rig.pool.create(SessionConfig()) for _ in range(5)]
        await asyncio.gather(*(rig.pool.destroy(v.session_id, force=True) for v in views))
    await until(lambda: not any(rig.kept.values()), 0.1)
