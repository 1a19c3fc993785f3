"""A whole day of an agent, with the official client: every transport, old and new revision."""

from __future__ import annotations

import asyncio
import time

import pytest

from .conftest import KINDS, NEW, Agent, Connect, facts, text


@pytest.mark.parametrize(("transport", "mode"), KINDS)
async def test_an_agent_does_all_its_work_over_every_transport_and_revision(
    connect: Connect, transport: str, mode: str
) -> None:
    async with connect(transport, mode) as agent:
        await works_with_files_packages_artifacts_and_checkpoints(agent)
        await sees_progress_and_cancels_within_a_second(agent)
        await follows_reads_and_ends_work_in_the_background(agent)


async def works_with_files_packages_artifacts_and_checkpoints(agent: Agent) -> None:
    wrote = facts(await agent.call("fs_write", path="in/data.txt", contents="3\n4\n"))
    assert wrote["bytes_written"] == 4
    assert wrote["session_id"] == agent.session_id

    ran = await agent.run("print(sum(int(n) for n in open('in/data.txt')))")
    assert (ran["stdout"], ran["exit_code"], ran["ended_by"]) == ("7\n", 0, "exit")

    installed = facts(await agent.call("pkg_install", packages=["seven"]))
    assert installed["installed"] == [{"name": "seven", "version": "1.0"}]
    assert (await agent.run("import seven; print(seven.VERSION)"))["stdout"] == "1.0\n"

    listed = facts(await agent.call("fs_list", recursive=True))
    assert [one["path"] for one in listed["files"]] == ["in", "in/data.txt"]

    made = await agent.call(
        "run_python",
        code="import os; os.mkdir('artifacts'); open('artifacts/out.txt', 'w').write('seven')",
    )
    (artifact,) = facts(made)["artifacts"]
    (link,) = [block for block in made.content if block.type == "resource_link"]
    assert link.uri == artifact["uri"]
    got = facts(await agent.call("artifact_get", artifact_id=artifact["artifact_id"]))
    assert got["contents"] == "seven"
    read = await agent.client.read_resource(artifact["uri"])
    assert read.contents[0].text == "seven"  # type: ignore[union-attr]

    saved = facts(await agent.call("session_checkpoint", name="before"))
    await agent.run("open('in/data.txt', 'w').write('gone'); open('new', 'w')")
    (copy,) = facts(await agent.call("session_fork"))["session_ids"]
    back = facts(await agent.call("session_restore", checkpoint_id=saved["checkpoint_id"]))
    assert back["session_id"] == agent.session_id
    assert "after the checkpoint" in back["lost"]
    assert facts(await agent.call("fs_read", path="in/data.txt"))["contents"] == "3\n4\n"
    assert (await agent.run("import seven; print(seven.VERSION)"))["stdout"] == "1.0\n"
    other = facts(await agent.call("fs_read", path="in/data.txt", session_id=copy))
    assert other["contents"] == "gone"

    ids = {one["session_id"] for one in facts(await agent.call("session_list"))["sessions"]}
    assert {copy, agent.session_id} <= ids
    for session_id in (copy, agent.session_id):
        gone = facts(await agent.call("session_destroy", session_id=session_id))
        assert gone["destroyed"]
    agent.session_id = ""


BEATING = """
import os, pathlib, time
print('one', flush=True)
while True:
    pathlib.Path('beat.new').write_text(str(time.time()))
    os.replace('beat.new', 'beat')  # it may end between any two steps
    time.sleep(0.01)
"""
LAST_BEAT = "print(open('beat').read())"
CANCEL_S = 1.0
ATTEMPTS = 3
"""A busy machine may hold up one; the code is never what holds it up."""


async def sees_progress_and_cancels_within_a_second(agent: Agent) -> None:
    await agent.run("print('session')")
    took = [await _cancelled(agent)]
    while took[-1] >= CANCEL_S and len(took) < ATTEMPTS:
        took.append(await _cancelled(agent))
    assert took[-1] < CANCEL_S, took
    status = facts(await agent.call("session_status"))
    ends = [
        facts(await agent.call("task_status", task_id=task_id))["ended_by"]
        for task_id in status["recent_tasks"]
    ]
    assert ends.count("cancelled") == len(took)


async def _cancelled(agent: Agent) -> float:
    """Cancel code that runs and has told progress; how long it went on after that, in seconds."""
    seen: list[float] = []
    printed = asyncio.Event()

    async def progress(done: float, total: float | None, message: str | None) -> None:
        seen.append(done)
        if "one" in (message or ""):
            printed.set()

    async with asyncio.timeout(30):
        call = asyncio.create_task(agent.call("run_python", progress, code=BEATING))
        await printed.wait()
        assert not call.done()
        begun = time.time()
        call.cancel()
        await asyncio.wait([call])
    assert call.cancelled()
    assert seen == sorted(seen)
    # Code runs one at a time in a session: that this one runs shows that the other has ended.
    async with asyncio.timeout(20):
        return float((await agent.run(LAST_BEAT))["stdout"]) - begun


async def follows_reads_and_ends_work_in_the_background(agent: Agent) -> None:
    code = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.01)"
    started = await agent.run(code, background=True)
    assert started["state"] == "running"
    task_id = started["task_id"]
    async with asyncio.timeout(30):
        while not (
            so_far := facts(await agent.call("task_result", task_id=task_id, wait_seconds=0))
        )["stdout"]:
            pass
    assert (so_far["state"], so_far["stdout"]) == ("running", "begun\n")
    part = facts(await agent.call("output_read", task_id=task_id, offset=2, length=3))
    assert (part["contents"], part["end"]) == ("gun", False)
    stopped = facts(await agent.call("task_cancel", task_id=task_id))
    assert (stopped["cancelled"], stopped["state"]) == (True, "running")
    result = await agent.call("task_result", task_id=task_id)
    assert facts(result)["ended_by"] == "cancelled"
    assert "ended by cancelled" in text(result)
    again = facts(await agent.call("task_cancel", task_id=task_id))
    assert (again["cancelled"], again["state"]) == (False, "finished")


async def test_fifty_clients_at_once_see_only_their_own_files(connect: Connect) -> None:
    async def work(number: int) -> list[str]:
        async with connect("http", NEW if number % 2 else "legacy") as agent:
            await agent.call("fs_write", path=f"mine-{number}", contents=str(number))
            ran = await agent.run("import os; print(*os.listdir())")
            return [*ran["stdout"].split(), agent.session_id]

    async with asyncio.timeout(100):
        seen = await asyncio.gather(*(work(number) for number in range(50)))
    assert [names[:-1] for names in seen] == [[f"mine-{number}"] for number in range(50)]
    assert len({names[-1] for names in seen}) == 50
