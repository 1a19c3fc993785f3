"""Sessions of a worker: admission, answers, destroy, drain and close."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Draining, Full, InvalidRequest, NotFound, SandboxUnavailable
from codegen_mcp.core.limits import GIB, MIB, ResourceLimits, Usage
from codegen_mcp.core.session import SessionConfig, SessionState
from codegen_mcp.engine.hooks import NoHooks
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.testing.memory_pool import MemoryPool, until

NOTHING = {"sandboxes": 0, "volumes": 0, "groups": 0, "users": 0, "directories": 0}
LIMITS = ResourceLimits()
COLD = SessionPoolConfig(max_sessions=3, pool_size=0, keep_sessions=False, grace_s=0.2)
WARM = replace(COLD, pool_size=2)
MAXIMUM = replace(LIMITS, memory_bytes=2 * GIB, disk_bytes=4 * GIB)


async def test_a_session_is_described_as_it_was_asked_for(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, replace(WARM, maximum_limits=MAXIMUM)) as rig:
        await rig.warmed(2)
        limits = replace(LIMITS, memory_bytes=1 * GIB)
        view = await rig.pool.create(
            SessionConfig(
                workspace_id="w", user_id="u", env={"A": "1"}, limits=limits, metadata={"k": "v"}
            )
        )
        assert view.state is SessionState.READY
        assert (view.workspace_id, view.user_id, view.metadata) == ("w", "u", {"k": "v"})
        assert (view.limits, view.language, view.incarnation) == (limits, "python3.11", 1)
        assert view.isolation == {"sandbox": "process-bare"}
        assert view.workspace_path == "/workspace"
        assert rig.pool.get(view.session_id) == view
        assert rig.pool.list() == [view]
        sandbox = rig.sandbox(view.session_id)
        assert (sandbox.env, sandbox.limits) == ({"A": "1"}, limits)
        assert sandbox.directory == rig.state.session(view.session_id)
        assert rig.pool.warm.hits == 1


async def test_a_session_that_asks_for_nothing_has_the_workers_defaults(tmp_path: Path) -> None:
    mine = replace(LIMITS, pids=77)
    config = replace(COLD, default_limits=mine, maximum_limits=mine)
    async with MemoryPool(tmp_path, config) as rig:
        assert rig.pool.default_limits == mine
        assert (await rig.pool.create(SessionConfig())).limits == mine


async def test_its_record_is_private_and_its_directory_only_passable(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        view = await rig.pool.create(SessionConfig())
        directory = rig.state.session(view.session_id)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o711
        assert stat.S_IMODE((directory / "session.json").stat().st_mode) == 0o600


async def test_ids_are_long_and_never_the_same(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, replace(COLD, max_sessions=20)) as rig:
        ids = {(await rig.pool.create(SessionConfig())).session_id for _ in range(20)}
        assert len(ids) == 20
        assert all(len(one) >= 32 for one in ids)


async def test_the_language_is_chosen_by_name_and_an_unknown_one_is_refused(
    tmp_path: Path,
) -> None:
    async with MemoryPool(tmp_path, WARM) as rig:
        assert (await rig.pool.create(SessionConfig(language="python"))).language == "python3.11"
        other = await rig.pool.create(SessionConfig(language="python3.12"))
        assert other.language == "python3.12"
        with pytest.raises(InvalidRequest, match=r"'cobol'.*: python3\.11"):
            await rig.pool.create(SessionConfig(language="cobol"))


async def test_a_bad_request_takes_no_place(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        for config in (
            SessionConfig(env={"1": ""}),
            SessionConfig(metadata={"": ""}),
            SessionConfig(limits=replace(LIMITS, memory_bytes=9 * GIB)),
            SessionConfig(idle_timeout_s=-1),
        ):
            with pytest.raises(InvalidRequest):
                await rig.pool.create(config)
        assert rig.pool.capacity().active == 0
        assert rig.kept == NOTHING


async def test_a_full_worker_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        views = [await rig.pool.create(SessionConfig()) for _ in range(3)]
        with pytest.raises(Full, match="all 3 sessions") as caught:
            await rig.pool.create(SessionConfig())
        assert caught.value.retry_after_s
        await rig.pool.destroy(views[0].session_id, force=True)
        await rig.pool.create(SessionConfig())


async def test_creations_under_way_count_towards_the_limit(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        rig.backend.gate = asyncio.Event()
        creations = [asyncio.create_task(rig.pool.create(SessionConfig())) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await rig.pool.create(SessionConfig())
        rig.backend.gate.set()
        await asyncio.gather(*creations)
        assert rig.pool.capacity().active == 3


async def test_a_burst_beyond_the_limit_makes_exactly_as_many_as_fit(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, replace(WARM, max_sessions=5)) as rig:
        await rig.warmed(2)
        results = await asyncio.gather(
            *(rig.pool.create(SessionConfig()) for _ in range(30)), return_exceptions=True
        )
        assert sum(isinstance(one, Full) for one in results) == 25
        assert rig.pool.capacity().active == 5
        await until(lambda: rig.pool.warm.occupied == 0)


async def test_never_existed_and_destroyed_are_answered_alike(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        gone = (await rig.pool.create(SessionConfig())).session_id
        await rig.pool.destroy(gone, force=True)
        never = "ses_" + "0" * 32

        async def answers(session_id: str) -> list[str]:
            found = []
            for call in (rig.pool.get, rig.pool.workspace, rig.pool.metadata, rig.pool.session):
                with pytest.raises(NotFound) as caught:
                    call(session_id)
                found.append(caught.value.message.replace(session_id, "ID"))
            for work in (
                rig.pool.destroy(session_id, force=True),
                rig.pool.update_metadata(session_id, {}, replace=False),
                rig.pool.set_idle_timeout(session_id, 5),
            ):
                with pytest.raises(NotFound) as caught:
                    await work
                found.append(caught.value.message.replace(session_id, "ID"))
            return found

        assert await answers(gone) == await answers(never)


async def test_destroy_gives_everything_back(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, WARM) as rig:
        await rig.warmed(2)
        for _ in range(5):
            view = await rig.pool.create(SessionConfig())
            await rig.pool.workspace(view.session_id).write(
                "a/b", b"x", create_dirs=True, mode=None
            )
            await rig.pool.destroy(view.session_id, force=True)
            assert not rig.state.session(view.session_id).exists()
        await rig.pool.close()
        assert rig.kept == NOTHING


async def test_a_gentle_destroy_waits_for_the_task_and_keeps_its_place(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, replace(COLD, grace_s=30)) as rig:
        session_id = (await rig.pool.create(SessionConfig())).session_id
        session = rig.pool.session(session_id)
        with session.activity():
            destroy = asyncio.create_task(rig.pool.destroy(session_id, force=False))
            await until(lambda: session.ending)
            assert rig.pool.get(session_id).state is SessionState.DRAINING
            with pytest.raises(NotFound), session.activity():
                pass
            with pytest.raises(NotFound):
                rig.pool.workspace(session_id)
            assert not destroy.done()
        await destroy
        assert rig.pool.capacity().active == 0


@pytest.mark.parametrize("force", [False, True])
async def test_a_gentle_destroy_lets_an_upload_finish_and_a_forced_one_cuts_it(
    tmp_path: Path, force: bool
) -> None:
    more, begun = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        begun.set()
        await more.wait()
        yield b"b"

    async with MemoryPool(tmp_path, replace(COLD, grace_s=30)) as rig:
        session_id = (await rig.pool.create(SessionConfig())).session_id
        upload = asyncio.create_task(
            rig.pool.workspace(session_id).write_chunks(
                "f",
                chunks(),
                create_dirs=False,
                mode=None,
                expected_size=None,
                expected_sha256=None,
            )
        )
        await begun.wait()
        destroy = asyncio.create_task(rig.pool.destroy(session_id, force=force))
        await until(lambda: destroy.done() == force)
        more.set()
        if force:
            with pytest.raises(NotFound):
                await upload
        else:
            assert (await upload)[0] == 2
        await destroy


async def test_a_gentle_destroy_cancels_the_task_after_the_grace(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, replace(COLD, grace_s=0.01)) as rig:
        session_id = (await rig.pool.create(SessionConfig())).session_id
        cancelled = asyncio.Event()
        reasons: list[str] = []

        async def task() -> None:
            def cancel(reason: str) -> None:
                reasons.append(reason)
                cancelled.set()

            with rig.pool.session(session_id).activity(cancel):
                await cancelled.wait()

        running = asyncio.create_task(task())
        await asyncio.sleep(0)
        await rig.pool.destroy(session_id, force=False)
        await running
        assert reasons == ["the session was destroyed"]


async def test_force_hurries_a_gentle_destroy_and_both_are_answered(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, replace(COLD, grace_s=600)) as rig:
        session_id = (await rig.pool.create(SessionConfig())).session_id
        session = rig.pool.session(session_id)
        done = asyncio.Event()

        async def task() -> None:
            with session.activity(lambda reason: done.set()):
                await done.wait()

        running = asyncio.create_task(task())
        await asyncio.sleep(0)
        gentle = asyncio.create_task(rig.pool.destroy(session_id, force=False))
        await until(lambda: session.ending)
        await rig.pool.destroy(session_id, force=True)
        await asyncio.gather(gentle, running)


async def test_runs_that_wait_are_turned_away_by_a_destroy(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        session = rig.pool.session((await rig.pool.create(SessionConfig())).session_id)
        first = session.run_slot()
        waiting = asyncio.create_task(session.run_slot().__aenter__())
        await asyncio.sleep(0)
        await rig.pool.destroy(session.session_id, force=True)
        with pytest.raises(NotFound):
            await waiting
        first.abandon()


async def test_a_caller_that_leaves_during_the_boot_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        rig.backend.gate = asyncio.Event()
        creation = asyncio.create_task(rig.pool.create(SessionConfig()))
        await until(lambda: rig.backend.boots == 1)
        creation.cancel()
        await asyncio.wait([creation])
        assert rig.pool.capacity().active == 0
        await until(lambda: rig.kept == NOTHING)
        rig.backend.gate.set()
        await rig.pool.create(SessionConfig())


async def test_a_boot_that_fails_is_answered_and_undone(tmp_path: Path) -> None:
    refused: list[str] = []

    class Hooks(NoHooks):
        def session_refused(self, *, reason: str) -> None:
            refused.append(reason)

    async with MemoryPool(tmp_path, COLD, hooks=Hooks()) as rig:
        rig.backend.fail = [SandboxUnavailable("no namespaces"), ValueError("a bug")]
        with pytest.raises(SandboxUnavailable, match="no namespaces"):
            await rig.pool.create(SessionConfig())
        with pytest.raises(SandboxUnavailable, match="doctor"):
            await rig.pool.create(SessionConfig())
        await until(lambda: rig.kept == NOTHING)
        assert refused == ["SANDBOX_UNAVAILABLE", "SANDBOX_UNAVAILABLE"]
        await rig.pool.create(SessionConfig())


async def test_disk_that_waiting_sandboxes_hold_is_given_to_a_session_that_needs_it(
    tmp_path: Path,
) -> None:
    config = replace(WARM, maximum_limits=MAXIMUM)
    async with MemoryPool(tmp_path, config, room_bytes=3 * GIB) as rig:
        await rig.warmed(2)
        view = await rig.pool.create(SessionConfig(limits=replace(LIMITS, disk_bytes=3 * GIB)))
        assert rig.pool.warm.depth == 0
        with pytest.raises(Full, match="no room"):
            await rig.pool.create(SessionConfig())
        await rig.pool.destroy(view.session_id, force=True)
        await rig.pool.create(SessionConfig())


async def test_metadata_is_merged_or_replaced_and_on_disk_when_answered(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        session_id = (await rig.pool.create(SessionConfig(metadata={"a": "1"}))).session_id

        def stored() -> object:
            path = rig.state.session(session_id) / "session.json"
            return json.loads(path.read_text())["metadata"]

        merged = await rig.pool.update_metadata(session_id, {"b": "2"}, replace=False)
        assert merged == {"a": "1", "b": "2"} == rig.pool.metadata(session_id) == stored()
        assert await rig.pool.update_metadata(session_id, {"c": "3"}, replace=True) == {"c": "3"}
        assert stored() == {"c": "3"}
        with pytest.raises(InvalidRequest):
            await rig.pool.update_metadata(session_id, {"": ""}, replace=False)
        many = [{str(i): "x"} for i in range(20)]
        await asyncio.gather(
            *(rig.pool.update_metadata(session_id, one, replace=False) for one in many)
        )
        assert len(rig.pool.metadata(session_id)) == 21


async def test_capacity_counts_and_lists_oldest_first(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        ids = []
        for _ in range(3):
            ids.append((await rig.pool.create(SessionConfig())).session_id)
            rig.clock.advance(1)
        capacity = rig.pool.capacity()
        assert (capacity.total, capacity.active) == (3, 3)
        assert [view.session_id for view in capacity.sessions] == ids


async def test_capacity_can_be_told_without_measuring_every_session(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        sandbox = rig.sandbox((await rig.pool.create(SessionConfig())).session_id)
        before = rig.pool.capacity().sessions[0].usage
        sandbox.used = Usage(memory_bytes=7)
        rig.clock.advance(60)
        assert rig.pool.capacity(measured=False).sessions[0].usage == before
        assert rig.pool.capacity().sessions[0].usage.memory_bytes == 7


async def test_a_draining_worker_takes_nothing_new_and_waits_for_what_runs(
    tmp_path: Path,
) -> None:
    async with MemoryPool(tmp_path, WARM) as rig:
        session = rig.pool.session((await rig.pool.create(SessionConfig())).session_id)
        with session.activity():
            assert not await rig.pool.drain(grace_s=0.01)
            drain = asyncio.create_task(rig.pool.drain(grace_s=30))
            await asyncio.sleep(0)
            assert rig.pool.draining
            with pytest.raises(Draining):
                await rig.pool.create(SessionConfig())
            with pytest.raises(Draining), session.activity():
                pass
            assert rig.pool.get(session.session_id).state is SessionState.BUSY
            assert not drain.done()
        assert await drain


async def test_closing_without_keeping_leaves_nothing(tmp_path: Path) -> None:
    rig = MemoryPool(tmp_path, WARM)
    async with rig:
        await rig.warmed(2)
        session = rig.pool.session((await rig.pool.create(SessionConfig())).session_id)
        stop = asyncio.Event()

        async def task() -> None:
            with session.activity(lambda reason: stop.set()):
                await stop.wait()

        running = asyncio.create_task(task())
        await asyncio.sleep(0)
    await running
    assert rig.kept == NOTHING


async def test_a_creation_that_meets_the_close_is_refused_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    rig = MemoryPool(tmp_path, COLD)
    async with rig:
        rig.backend.gate = asyncio.Event()
        creation = asyncio.create_task(rig.pool.create(SessionConfig()))
        await until(lambda: rig.backend.boots == 1)
    with pytest.raises(Draining):
        await creation
    assert rig.kept == NOTHING


async def test_the_workspace_is_the_sessions_own(tmp_path: Path) -> None:
    async with MemoryPool(tmp_path, COLD) as rig:
        one, two = [(await rig.pool.create(SessionConfig())).session_id for _ in range(2)]
        await rig.pool.workspace(one).write("f", b"one", create_dirs=False, mode=None)
        with pytest.raises(NotFound):
            await rig.pool.workspace(two).read("f", 0, 10)
        held = rig.pool.workspace(one)
        await rig.pool.destroy(one, force=True)
        with pytest.raises(NotFound):
            await held.read("f", 0, 10)


def test_settings_that_cannot_be_are_refused_by_name() -> None:
    for wrong in (
        {"max_sessions": 0},
        {"idle_timeout_s": 0.0},
        {"idle_timeout_s": float("nan")},
        {"grace_s": -1.0},
        {"max_idle_timeout_s": 10.0},
        {"default_limits": replace(LIMITS, memory_bytes=600 * MIB)},
    ):
        with pytest.raises(InvalidRequest, match=next(iter(wrong)).split("_")[0]):
            SessionPoolConfig(**wrong)  # type: ignore[arg-type]
