"""A start takes over what the last worker left: sessions as they lay, nothing else."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Corrupt, Full, WrongState
from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.core.session import SessionConfig, SessionState
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.volumes.base import Volume
from codegen_mcp.testing.memory_pool import MemoryPool, until

CONFIG = SessionPoolConfig(pool_size=0, max_sessions=3, keep_sessions=True)


class Records:
    def __init__(self) -> None:
        self.recovered: list[tuple[str, Path]] = []
        self.forgotten: list[str] = []

    def recover(self, session_id: str, directory: Path) -> Sequence[str]:
        self.recovered.append((session_id, directory))
        return ["t9", "t8"]

    def forget(self, session_id: str) -> None:
        self.forgotten.append(session_id)


async def left_behind(root: Path, count: int = 1, config: SessionPoolConfig = CONFIG) -> list[str]:
    """Let a worker make sessions and die."""
    rig = MemoryPool(root, config)
    async with rig:
        ids = []
        for number in range(count):
            asked = SessionConfig(
                workspace_id="w",
                env={"A": "1"},
                metadata={"number": str(number)},
                limits=ResourceLimits(memory_bytes=100 * MIB),
                idle_timeout_s=777,
                language="python3.12",
            )
            view = await rig.pool.create(asked)
            await rig.pool.workspace(view.session_id).write(
                "file", str(number).encode(), create_dirs=False, mode=None
            )
            ids.append(view.session_id)
            rig.clock.advance(1)
    return ids


async def test_sessions_are_there_at_once_with_everything_that_they_were(tmp_path: Path) -> None:
    ids = await left_behind(tmp_path, 3)
    records = Records()
    rig = MemoryPool(tmp_path, CONFIG, records=records)
    rig.backend.gate = asyncio.Event()
    async with rig:
        views = rig.pool.list()
        assert [view.session_id for view in views] == ids
        for number, view in enumerate(views):
            assert (view.workspace_id, view.metadata) == ("w", {"number": str(number)})
            assert (view.incarnation, view.language) == (2, "python3.12")
            assert view.limits.memory_bytes == 100 * MIB
            assert view.state is SessionState.INITIALIZING
            assert "adopted" in view.note
            assert view.recent_tasks == ("t9", "t8")
            session = rig.pool.session(view.session_id)
            assert (session.env, session.idle_timeout_s) == ({"A": "1"}, 777)
            read = await rig.pool.workspace(view.session_id).read("file", 0, 10)
            assert read == (str(number).encode(), 1)
        rig.backend.gate.set()
        await until(lambda: all(view.state is SessionState.IDLE for view in rig.pool.list()))
        assert rig.sandbox(ids[0]).env == {"A": "1"}
        assert records.recovered == [(one, rig.state.session(one)) for one in ids] or len(
            records.recovered
        ) == len(ids)
        await rig.pool.destroy(ids[0], force=True)
        assert records.forgotten == [ids[0]]


async def test_a_use_boots_an_adopted_session_without_waiting_for_the_others(
    tmp_path: Path,
) -> None:
    ids = await left_behind(tmp_path, 3)
    rig = MemoryPool(tmp_path, replace(CONFIG, concurrent_boots=1))
    rig.backend.gate = asyncio.Event()
    async with rig:
        await until(lambda: rig.backend.boots == 1)
        use = asyncio.create_task(rig.pool.session(ids[2]).sandbox())
        await until(lambda: rig.backend.boots == 2)
        rig.backend.gate.set()
        assert (await use).alive


async def test_each_worker_adds_one_to_the_incarnation(tmp_path: Path) -> None:
    [session_id] = await left_behind(tmp_path)
    for expected in (2, 3, 4):
        async with MemoryPool(tmp_path, CONFIG) as rig:
            assert rig.pool.get(session_id).incarnation == expected


async def test_an_adopted_session_keeps_its_host_user_or_gets_another(tmp_path: Path) -> None:
    [session_id] = await left_behind(tmp_path)
    async with MemoryPool(tmp_path, CONFIG) as rig:
        assert rig.pool.session(session_id).identity == HostIdentity(uid=200_000, gid=200_000)
    rig = MemoryPool(tmp_path, CONFIG)
    rig.identities.leased.add(200_000)
    async with rig:
        assert rig.pool.session(session_id).identity == HostIdentity(uid=200_001, gid=200_001)


async def test_slots_and_trash_of_the_dead_worker_are_deleted(tmp_path: Path) -> None:
    [session_id] = await left_behind(tmp_path)
    for path in ("slots/1/volume/workspace/deep/er", "trash/abc/x", "slots/17"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "slots" / "file").write_text("")
    async with MemoryPool(tmp_path, CONFIG) as rig:
        await until(lambda: rig.kept["directories"] == 1)
        assert rig.state.session(session_id).is_dir()


async def test_adoption_may_exceed_the_limit_and_then_nothing_new_fits(tmp_path: Path) -> None:
    ids = await left_behind(tmp_path, 3)
    async with MemoryPool(tmp_path, replace(CONFIG, max_sessions=1, pool_size=2)) as rig:
        capacity = rig.pool.capacity()
        assert (capacity.total, capacity.active) == (1, 3)
        for session_id in ids[:2]:
            with pytest.raises(Full):
                await rig.pool.create(SessionConfig())
            await rig.pool.destroy(session_id, force=True)
        with pytest.raises(Full):
            await rig.pool.create(SessionConfig())
        assert rig.pool.warm.depth == 0


@pytest.mark.parametrize("damage", ["missing", "empty", "other", "volume", "file"])
async def test_what_cannot_be_adopted_is_deleted_and_named(tmp_path: Path, damage: str) -> None:
    good, bad = await left_behind(tmp_path, 2)
    directory = tmp_path / "sessions" / bad
    if damage == "missing":
        (directory / "session.json").unlink()
    elif damage == "empty":
        (directory / "session.json").write_bytes(b"")
    elif damage == "other":
        shutil.copy(tmp_path / "sessions" / good / "session.json", directory)
    elif damage == "volume":
        shutil.rmtree(directory / "volume")
    else:
        shutil.rmtree(directory)
        directory.write_text("a file")
    async with MemoryPool(tmp_path, CONFIG) as rig:
        assert rig.pool.adoption.deleted == [bad]
        assert [view.session_id for view in rig.pool.list()] == [good]
        await until(lambda: not directory.exists() and not list(rig.state.trash.iterdir()))
        await until(lambda: len(rig.volumes.attached) == 1)


async def test_a_session_of_an_interpreter_that_is_gone_is_deleted_and_named(
    tmp_path: Path,
) -> None:
    [session_id] = await left_behind(tmp_path)
    path = tmp_path / "sessions" / session_id / "session.json"
    path.write_text(path.read_text().replace("python3.12", "python2.7"))
    async with MemoryPool(tmp_path, CONFIG) as rig:
        assert rig.pool.adoption.deleted == [session_id]
        assert rig.identities.leased == set()


async def test_what_the_host_refuses_for_now_is_left_for_the_next_start(tmp_path: Path) -> None:
    [session_id] = await left_behind(tmp_path)
    rig = MemoryPool(tmp_path, CONFIG)

    async def refuse(directory: Path, identity: HostIdentity | None) -> Volume:
        raise Corrupt("cannot be attached") from PermissionError(1, "not permitted")

    rig.volumes.adopt = refuse  # type: ignore[method-assign,assignment]
    async with rig:
        assert (rig.pool.adoption.left, rig.pool.adoption.deleted) == ([session_id], [])
        assert rig.pool.list() == []
    async with MemoryPool(tmp_path, CONFIG) as rig:
        assert rig.pool.get(session_id).incarnation == 2


async def test_a_session_of_a_newer_version_stops_the_start_and_is_left_alone(
    tmp_path: Path,
) -> None:
    _, newer = await left_behind(tmp_path, 2)
    path = tmp_path / "sessions" / newer / "session.json"
    path.write_text(json.dumps({"format": 99}))
    rig = MemoryPool(tmp_path, CONFIG)
    with pytest.raises(WrongState, match=newer):
        async with rig:
            pass
    assert json.loads(path.read_text()) == {"format": 99}
    assert {name: count for name, count in rig.kept.items() if count} == {"directories": 2}
    rig.state.close()


async def test_age_goes_on_over_a_restart_and_idle_time_begins_anew(tmp_path: Path) -> None:
    [session_id] = await left_behind(tmp_path)
    config = replace(CONFIG, max_age_s=1000, sweep_interval_s=3600)
    rig = MemoryPool(tmp_path, config)
    rig.clock.advance(900)
    async with rig:
        await rig.pool.reaper.sweep()
        assert rig.pool.get(session_id).last_activity_ms < rig.clock.unix_ms()
        rig.clock.advance(100)
        await rig.pool.reaper.sweep()
        await until(lambda: rig.pool.list() == [])


async def test_a_graceful_stop_keeps_sessions_only_when_it_is_to(tmp_path: Path) -> None:
    config = replace(CONFIG, keep_sessions=False)
    await left_behind(tmp_path, 2, config)
    async with MemoryPool(tmp_path, CONFIG) as rig:
        assert rig.pool.list() == []
