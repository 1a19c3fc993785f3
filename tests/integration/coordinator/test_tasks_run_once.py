"""A task that may have started is not run again, whatever happens on the way to its worker."""

from __future__ import annotations

import asyncio

import pytest

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.core.errors import WrongState
from codegen_mcp.testing.coordinator_rig import (
    ALICE,
    CoordinatorRig,
    create,
    execute,
    printed,
    python,
    save,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
COUNT = "open('n', 'a').write('x')\n"


async def go(rig: CoordinatorRig, session_id: str) -> None:
    """Let waiting code go on, past the coordinator."""
    workspace = rig.members["one"].engine.sessions.workspace(session_id)
    await workspace.write("go", b"", create_dirs=False, mode=None)


async def follow(
    rig: CoordinatorRig, request: tasks_pb.TaskRequest, up: asyncio.Event
) -> list[tasks_pb.TaskResponse]:
    """Run it, and say when its code does."""
    messages = []
    async for message in rig.gateway.tasks(ALICE, "TaskExecution/ExecuteTask", request):
        messages.append(message)
        if message.log.message == "up\n":
            up.set()
    return messages


async def test_a_link_that_breaks_under_a_task_neither_runs_it_twice_nor_loses_output(
    rig: CoordinatorRig,
) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    up = asyncio.Event()
    request = python(session_id, f"{COUNT}print('up', flush=True)\n{WAIT}print('done')")
    stream = asyncio.ensure_future(follow(rig, request, up))
    await up.wait()
    for _ in range(3):
        await rig.members["one"].proxy.reset()
        await asyncio.sleep(0.1)
    await go(rig, session_id)
    messages = await stream
    output = b"".join(message.log.data for message in messages)
    assert output == b"up\ndone\n"
    assert messages[-1].result.status == tasks_pb.TaskResult.STATUS_SUCCESS
    assert await printed(rig.gateway, session_id, "print(open('n').read())") == "x\n"


async def test_a_repeated_request_is_answered_from_the_record(rig: CoordinatorRig) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    request = python(session_id, COUNT + "print('ran')", task_id="t", sequence=1)
    first = (await execute(rig.gateway, request))[-1]
    await rig.members["one"].proxy.reset()
    again = (await execute(rig.gateway, request))[-1]
    assert again.result.typed_response == first.result.typed_response
    assert await printed(rig.gateway, session_id, "print(open('n').read())") == "x\n"


async def test_a_program_that_fails_is_a_result_and_is_not_repeated(rig: CoordinatorRig) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    last = (await execute(rig.gateway, python(session_id, COUNT + "raise SystemExit(7)")))[-1]
    assert last.result.metadata.exit_code == 7
    assert await printed(rig.gateway, session_id, "print(open('n').read())") == "x\n"


async def test_tasks_sent_at_once_run_in_the_order_of_their_sequence(rig: CoordinatorRig) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    answers = await asyncio.gather(
        *(
            execute(
                rig.gateway,
                python(session_id, f"open('o', 'a').write('{n}')", sequence=n),
            )
            for n in range(1, 9)
        )
    )
    assert all(answer[-1].result.status == tasks_pb.TaskResult.STATUS_SUCCESS for answer in answers)
    assert await printed(rig.gateway, session_id, "print(open('o').read())") == "12345678\n"


async def test_a_sequence_that_was_overtaken_is_an_error_and_never_success(
    rig: CoordinatorRig,
) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    await printed(rig.gateway, session_id, "1", sequence=5)
    with pytest.raises(WrongState) as caught:
        await execute(rig.gateway, python(session_id, COUNT, sequence=3))
    assert caught.value.reason == "OUTCOME_UNKNOWN"


async def test_tasks_without_an_id_get_ids_of_their_own(rig: CoordinatorRig) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    answers = await asyncio.gather(
        *(execute(rig.gateway, python(session_id, "1")) for _ in range(8))
    )
    assert len({answer[-1].task_id for answer in answers}) == 8


async def test_what_ran_on_a_lost_worker_is_unknown_and_not_run_again(rig: CoordinatorRig) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    await printed(rig.gateway, session_id, "open('n', 'w').close()")
    await save(rig.gateway, session_id)
    up = asyncio.Event()
    request = python(session_id, f"{COUNT}print('up', flush=True)\n{WAIT}")
    stream = asyncio.ensure_future(follow(rig, request, up))
    await up.wait()
    await rig.silence("one")
    last = (await stream)[-1]
    assert last.error.code == "UNAVAILABLE"
    assert "OUTCOME_UNKNOWN" in last.error.details
    assert not last.error.retriable
    assert await printed(rig.gateway, session_id, "print(open('n').read())") == "\n"


async def test_an_idempotent_tool_is_done_again_where_the_session_is_restored(
    rig: CoordinatorRig,
) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    await save(rig.gateway, session_id)
    # The request leaves, and no answer comes back.
    rig.members["one"].proxy.freeze()
    tool = tools_pb2.ToolRequest(fs_write=tools_pb2.FsWriteRequest(path="g", contents="once"))
    request = tasks_pb.TaskRequest(session_id=session_id, typed_request=tool)
    stream = asyncio.ensure_future(execute(rig.gateway, request))
    await asyncio.sleep(0.1)
    await rig.silence("one")
    last = (await stream)[-1]
    assert last.result.status == tasks_pb.TaskResult.STATUS_SUCCESS
    assert await printed(rig.gateway, session_id, "print(open('g').read())") == "once\n"
