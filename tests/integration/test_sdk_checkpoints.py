"""The SDK's checkpoints and forks against a real worker, async and not."""

from __future__ import annotations

import asyncio

import pytest

from codegen_mcp.client import (
    AsyncCheckpoint,
    AsyncSandbox,
    Checkpoint,
    CheckpointNotFoundException,
    InvalidArgumentException,
    Sandbox,
    SandboxNotFoundException,
    StateException,
)


async def test_a_checkpoint_becomes_a_new_session_while_the_old_one_goes_on(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker, envs={"A": "1"}) as sandbox:
        await sandbox.files.write("n.txt", "1")
        saved = await sandbox.checkpoint("first")
        await sandbox.files.write("n.txt", "2")
        async with await AsyncSandbox.restore(saved.checkpoint_id, address=shared_worker) as copy:
            program = "import os; print(open('n.txt').read(), os.environ['A'])"
            result = await copy.run_python(program)
            info = await copy.get_info()
        own = await sandbox.files.read("n.txt")
    assert result.stdout == "1 1\n"
    assert own == "2"
    assert copy.sandbox_id != sandbox.sandbox_id
    assert (info.restored_from, info.lost) == (saved.checkpoint_id, "")
    assert (saved.name, saved.sandbox_id) == ("first", sandbox.sandbox_id)
    assert saved.modified_files == ("n.txt",)
    assert saved.envs == {"A": "1"}


async def test_a_session_goes_back_to_a_checkpoint_of_its_own(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        await sandbox.files.write("n.txt", "1")
        saved = await sandbox.checkpoint()
        await sandbox.files.write("n.txt", "2")
        back = await sandbox.restore(saved.checkpoint_id)
        content = await sandbox.files.read("n.txt")
        info = await sandbox.get_info()
    assert content == "1"
    assert back.sandbox_id == sandbox.sandbox_id
    assert back.checkpoint.checkpoint_id == saved.checkpoint_id
    assert back.lost
    assert info.lost == back.lost


async def test_a_session_never_takes_another_one_s_checkpoint_in_place(shared_worker):
    async with (
        await AsyncSandbox.create(address=shared_worker) as one,
        await AsyncSandbox.create(address=shared_worker) as other,
    ):
        await other.files.write("n.txt", "1")
        saved = await other.checkpoint()
        await other.files.write("n.txt", "2")
        with pytest.raises(InvalidArgumentException, match="not one of session"):
            await one.restore(saved.checkpoint_id)
        content = await other.files.read("n.txt")
    assert content == "2"


async def test_a_paused_session_comes_back_under_its_own_id(shared_worker):
    sandbox = await AsyncSandbox.create(address=shared_worker)
    await sandbox.files.write("n.txt", "1")
    checkpoint_id = await sandbox.pause()
    with pytest.raises(SandboxNotFoundException):
        await sandbox.get_info()
    await sandbox.close()
    back = await AsyncSandbox.restore(checkpoint_id, new_session=False, address=shared_worker)
    async with back:
        content = await back.files.read("n.txt")
    assert back.sandbox_id == sandbox.sandbox_id
    assert content == "1"


async def test_forks_go_their_own_ways(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        await sandbox.files.write("n.txt", "1")
        one, two = await sandbox.fork(2)
        async with one, two:
            await one.files.write("n.txt", "2")
            contents = [await each.files.read("n.txt") for each in (sandbox, one, two)]
        with pytest.raises(InvalidArgumentException):
            await sandbox.fork(0)
    assert contents == ["1", "2", "1"]


async def test_a_session_that_works_says_why_it_cannot_be_copied_or_paused(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        up = asyncio.Event()
        program = "import time; print('up', flush=True); time.sleep(60)"
        running = asyncio.create_task(sandbox.run_python(program, on_stdout=lambda text: up.set()))
        await asyncio.wait_for(up.wait(), 30)
        for attempt in (sandbox.fork(), sandbox.pause()):
            with pytest.raises(StateException) as caught:
                await attempt
            assert caught.value.reason == "SESSION_BUSY"
        still = await sandbox.get_info()
        await sandbox.pause(force=True)
        await asyncio.gather(running, return_exceptions=True)
    assert still.active_tasks == 1


async def test_checkpoints_are_listed_looked_up_and_deleted_without_their_session(shared_worker):
    async with await AsyncSandbox.create(address=shared_worker) as sandbox:
        made = [(await sandbox.checkpoint()).checkpoint_id for _ in range(3)]
        inside = await sandbox.checkpoints()
        newest = (await sandbox.get_info()).last_checkpoint_id
    outside = await AsyncCheckpoint.list(sandbox.sandbox_id, address=shared_worker)
    one = await AsyncCheckpoint.get(made[0], address=shared_worker)
    for checkpoint_id in made:
        await AsyncCheckpoint.delete(checkpoint_id, address=shared_worker)
    left = await AsyncCheckpoint.list(sandbox.sandbox_id, address=shared_worker)
    with pytest.raises(CheckpointNotFoundException):
        await AsyncCheckpoint.get(made[0], address=shared_worker)
    with pytest.raises(CheckpointNotFoundException):
        await AsyncSandbox.restore("nonsense", address=shared_worker)
    assert [info.checkpoint_id for info in inside] == made[::-1]
    assert newest == made[-1]
    assert outside == inside
    assert one == inside[-1]
    assert left == []


async def test_what_was_asked_of_durability_is_told(shared_worker):
    made = AsyncSandbox.create(
        address=shared_worker, auto_restore=True, durability="turn", checkpoint_interval=600
    )
    async with await made as sandbox:
        info = await sandbox.get_info()
    assert (info.auto_restore, info.durability) == (True, "turn")


async def test_the_synchronous_sandbox_saves_restores_and_forks(shared_worker):
    def use() -> tuple[list[str], str, list[str]]:
        with Sandbox.create(address=shared_worker) as sandbox:
            sandbox.files.write("n.txt", "1")
            saved = sandbox.checkpoint("sync")
            sandbox.files.write("n.txt", "2")
            (copy,) = sandbox.fork()
            with copy, Sandbox.restore(saved.checkpoint_id, address=shared_worker) as restored:
                contents = [each.files.read("n.txt") for each in (sandbox, copy, restored)]
            back = sandbox.restore(saved.checkpoint_id)
            contents.append(sandbox.files.read("n.txt"))
            names = [info.name for info in sandbox.checkpoints()]
            paused = sandbox.pause()
        assert Checkpoint.get(paused, address=shared_worker).trigger
        for info in Checkpoint.list(sandbox.sandbox_id, address=shared_worker):
            Checkpoint.delete(info.checkpoint_id, address=shared_worker)
        return contents, back.checkpoint.name, names

    assert await asyncio.to_thread(use) == (["2", "2", "1", "1"], "sync", ["sync"])
