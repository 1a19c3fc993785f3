"""A coordinator that starts again, workers that leave in peace, and workers that are full."""

from __future__ import annotations

import asyncio

import pytest

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp.coordinator.adhoc import ADHOC_KEY
from codegen_mcp.core.errors import Full
from codegen_mcp.testing.coordinator_rig import (
    ALICE,
    BOB,
    CoordinatorRig,
    coordinator_rig,
    create,
    execute,
    printed,
    python,
    save,
    status,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def adhoc(rig: CoordinatorRig) -> str:
    request = sessions_pb.CreateSessionRequest(
        metadata={ADHOC_KEY: "1"}, config=sessions_pb.SessionConfig(auto_restore=True)
    )
    answer = await rig.gateway.unary(ALICE, "SessionManagement/CreateSession", request)
    assert isinstance(answer, sessions_pb.CreateSessionResponse)
    return answer.session_id


async def test_a_coordinator_that_starts_again_knows_every_session(rig: CoordinatorRig) -> None:
    sessions = [await create(rig.gateway) for _ in range(4)]
    for number, session_id in enumerate(sessions):
        await printed(rig.gateway, session_id, f"open('n', 'w').write('{number}')")
    await rig.stop_coordinator()
    await rig.start_coordinator()
    for number, session_id in enumerate(sessions):
        assert await printed(rig.gateway, session_id, "print(open('n').read())") == f"{number}\n"
    with pytest.raises(Exception, match="no session"):
        await status(rig.gateway, sessions[0], BOB)


async def test_a_task_goes_on_while_its_coordinator_starts_again(rig: CoordinatorRig) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    code = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('done')"
    request = python(session_id, "print('up', flush=True)\n" + code, task_id="t", sequence=1)
    stream = rig.gateway.tasks(ALICE, "TaskExecution/ExecuteTask", request)
    assert (await anext(stream)).log.message == "up\n"
    await rig.stop_coordinator()
    await rig.start_coordinator()
    workspace = rig.members["one"].engine.sessions.workspace(session_id)
    await workspace.write("go", b"", create_dirs=False, mode=None)
    last = (await execute(rig.gateway, request))[-1]
    assert last.result.typed_response.run_python.stdout == "up\ndone\n"


async def test_a_draining_worker_hands_its_sessions_over_with_all_they_have(
    rig: CoordinatorRig,
) -> None:
    gateway = rig.gateway
    sessions = [await create(gateway, worker_id="one") for _ in range(3)]
    for session_id in sessions:
        await printed(gateway, session_id, "open('f', 'w').write('never saved')")
    member = rig.members["one"]
    await member.server.drain()

    async def is_empty() -> bool:
        return not member.engine.sessions.ownership.held()

    await until(is_empty)
    for session_id in sessions:
        assert await printed(gateway, session_id, "print(open('f').read())") == "never saved\n"
        assert (await status(gateway, session_id)).worker_id == "two"
    await rig.stop_worker("one")
    await rig.start_worker("one")


async def test_a_task_under_way_is_not_disturbed_by_a_drain(rig: CoordinatorRig) -> None:
    gateway = rig.gateway
    session_id = await create(gateway, worker_id="one")
    code = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('done')"
    stream = gateway.tasks(
        ALICE,
        "TaskExecution/ExecuteTask",
        python(session_id, "print('up', flush=True)\n" + code),
    )
    assert (await anext(stream)).log.message == "up\n"
    member = rig.members["one"]
    await member.server.drain()
    await asyncio.sleep(0.7)
    workspace = member.engine.sessions.workspace(session_id)
    await workspace.write("go", b"", create_dirs=False, mode=None)
    rest = [message async for message in stream]
    assert rest[-1].result.status == tasks_pb.TaskResult.STATUS_SUCCESS
    assert await printed(gateway, session_id, "import os; print(os.listdir())") == "['go']\n"
    assert (await status(gateway, session_id)).worker_id == "two"
    await rig.stop_worker("one")
    await rig.start_worker("one")


async def test_a_call_for_a_draining_worker_moves_its_session_first() -> None:
    async with coordinator_rig("one", "two") as rig:
        session_id = await create(rig.gateway, worker_id="one")
        await printed(rig.gateway, session_id, "open('f', 'w').write('moved')")
        await rig.members["one"].server.drain()
        assert await printed(rig.gateway, session_id, "print(open('f').read())") == "moved\n"
        assert (await status(rig.gateway, session_id)).worker_id == "two"


async def test_sessions_of_single_calls_give_way_when_all_is_full_and_come_back() -> None:
    async with coordinator_rig("one", max_sessions=2) as rig:
        gateway = rig.gateway
        first, second = await adhoc(rig), await adhoc(rig)
        await printed(gateway, first, "open('f', 'w').write('first')")
        await printed(gateway, second, "open('f', 'w').write('second')")
        lasting = [await create(gateway), await create(gateway)]
        with pytest.raises(Full) as caught:
            await create(gateway)
        assert caught.value.retry_after_s is not None
        request = sessions_pb.DestroySessionRequest(session_id=lasting[0])
        await gateway.unary(ALICE, "SessionManagement/DestroySession", request)
        answer = await execute(gateway, python(first, "print(open('f').read())"))
        assert answer[0].progress.stage == "restored"
        assert answer[-1].result.typed_response.run_python.stdout == "first\n"


async def test_a_busy_session_of_a_single_call_does_not_give_way() -> None:
    async with coordinator_rig("one", max_sessions=1) as rig:
        session_id = await adhoc(rig)
        code = "print('up', flush=True)\nimport time; time.sleep(60)"
        stream = rig.gateway.tasks(ALICE, "TaskExecution/ExecuteTask", python(session_id, code))
        await anext(stream)
        with pytest.raises(Full):
            await create(rig.gateway)
        await stream.aclose()


async def test_what_was_saved_before_a_coordinator_died_is_found_after(rig: CoordinatorRig) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    await printed(rig.gateway, session_id, "open('f', 'w').write('saved')")
    await save(rig.gateway, session_id)
    await rig.stop_coordinator()
    await rig.stop_worker("one")
    await rig.start_coordinator()
    assert await printed(rig.gateway, session_id, "print(open('f').read())") == "saved\n"
    assert (await status(rig.gateway, session_id)).worker_id == "two"
    await rig.start_worker("one")
