"""What becomes of sessions whose worker falls silent, and of the worker that comes back late."""

from __future__ import annotations

import asyncio
import time

import pytest

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp.core.errors import NotFound, Unavailable, WorkerError
from codegen_mcp.testing.coordinator_rig import (
    ALICE,
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


async def test_a_saved_session_of_a_lost_worker_is_restored_elsewhere_under_the_next_epoch(
    rig: CoordinatorRig,
) -> None:
    gateway = rig.gateway
    session_id = await create(gateway, worker_id="one")
    await printed(gateway, session_id, "open('f', 'w').write('saved')")
    await save(gateway, session_id)
    await printed(gateway, session_id, "open('f', 'w').write('not saved')")
    await rig.silence("one")
    answer = await execute(gateway, python(session_id, "print(open('f').read())"))
    assert answer[0].progress.stage == "restored"
    assert answer[-1].result.typed_response.run_python.stdout == "saved\n"
    now = await status(gateway, session_id)
    assert (now.worker_id, now.info.epoch) == ("two", 2)


async def test_a_session_that_asked_for_it_comes_back_without_being_called(
    rig: CoordinatorRig,
) -> None:
    gateway = rig.gateway
    session_id = await create(gateway, worker_id="one", auto_restore=True)
    await save(gateway, session_id)
    await rig.silence("one")

    async def is_back() -> bool:
        return session_id in rig.members["two"].engine.sessions.ownership.held()

    await until(is_back)


async def test_a_session_without_checkpoint_is_told_lost_once_and_its_place_is_free(
    rig: CoordinatorRig,
) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    await rig.silence("one")
    with pytest.raises(NotFound) as lost:
        await execute(rig.gateway, python(session_id, "print(1)"))
    assert lost.value.reason == "SESSION_LOST"
    with pytest.raises(NotFound) as gone:
        await execute(rig.gateway, python(session_id, "print(1)"))
    assert gone.value.reason == "SESSION_NOT_FOUND"
    listed = await rig.gateway.unary(
        ALICE, "SessionManagement/ListSessions", sessions_pb.ListSessionsRequest()
    )
    assert isinstance(listed, sessions_pb.ListSessionsResponse)
    assert not listed.sessions


async def test_a_call_waits_no_longer_than_stated_for_a_worker_that_is_away() -> None:
    async with coordinator_rig("one", worker_lost_after_s=60.0, route_wait_s=1.0) as rig:
        session_id = await create(rig.gateway, worker_id="one")
        await rig.silence("one")
        began = time.monotonic()
        with pytest.raises(Unavailable) as away:
            await status(rig.gateway, session_id)
        assert away.value.retry_after_s is not None
        assert time.monotonic() - began < 15


async def test_a_late_worker_is_fenced_and_ends_its_copy(rig: CoordinatorRig) -> None:
    gateway = rig.gateway
    session_id = await create(gateway, worker_id="one")
    await printed(gateway, session_id, "open('f', 'w').write('first')")
    await save(gateway, session_id)
    await rig.silence("one")
    await printed(gateway, session_id, "open('f', 'a').write(' second')")
    late = rig.members["one"]
    assert session_id in late.engine.sessions.ownership.held()
    late.proxy.mend()
    await rig.join(late)

    async def has_ended_it() -> bool:
        return session_id not in late.engine.sessions.ownership.held()

    await until(has_ended_it)
    assert await printed(gateway, session_id, "print(open('f').read())") == "first second\n"
    assert (await status(gateway, session_id)).worker_id == "two"


async def test_a_worker_that_is_back_in_time_keeps_its_sessions_with_all_they_had() -> None:
    async with coordinator_rig("one", worker_lost_after_s=60.0) as rig:
        gateway = rig.gateway
        session_id = await create(gateway, worker_id="one")
        await printed(gateway, session_id, "open('f', 'w').write('all of it')")
        member = rig.members["one"]
        await rig.silence("one")
        asked = asyncio.ensure_future(printed(gateway, session_id, "print(open('f').read())"))
        member.proxy.mend()
        await rig.join(member)
        assert await asked == "all of it\n"


async def test_a_restarted_worker_takes_its_own_sessions_back(rig: CoordinatorRig) -> None:
    gateway = rig.gateway
    session_id = await create(gateway, worker_id="one")
    await printed(gateway, session_id, "open('f', 'w').write('on disk')")
    await rig.stop_worker("one")
    await rig.start_worker("one")
    assert await printed(gateway, session_id, "print(open('f').read())") == "on disk\n"
    assert (await status(gateway, session_id)).info.epoch == 2


async def test_status_of_a_lost_session_says_what_it_is_and_does_not_bring_it_back(
    rig: CoordinatorRig,
) -> None:
    session_id = await create(rig.gateway, worker_id="one")
    await save(rig.gateway, session_id)
    await rig.silence("one")

    async def is_lost() -> bool:
        try:
            answer = await status(rig.gateway, session_id)
        except WorkerError:
            return False
        return answer.state == common_pb2.SESSION_STATE_FAILED

    await until(is_lost)
    answer = await status(rig.gateway, session_id)
    assert "restored" in answer.info.note
    assert not rig.members["two"].engine.sessions.ownership.held()


async def test_many_sessions_of_a_lost_worker_all_come_back(rig: CoordinatorRig) -> None:
    gateway = rig.gateway
    sessions = [await create(gateway, worker_id="one", auto_restore=True) for _ in range(8)]
    for number, session_id in enumerate(sessions):
        await printed(gateway, session_id, f"open('n', 'w').write('{number}')")
        await save(gateway, session_id)
    await rig.silence("one")
    found = await asyncio.gather(
        *(printed(gateway, session_id, "print(open('n').read())") for session_id in sessions)
    )
    assert found == [f"{number}\n" for number in range(8)]


async def test_a_session_that_was_put_back_to_an_older_checkpoint_comes_back_as_that(
    rig: CoordinatorRig,
) -> None:
    gateway = rig.gateway
    session_id = await create(gateway, worker_id="one")
    await printed(gateway, session_id, "open('f', 'w').write('older')")
    older = await save(gateway, session_id)
    await printed(gateway, session_id, "open('f', 'w').write('newer')")
    await save(gateway, session_id)
    request = sessions_pb.RestoreRequest(checkpoint_id=older)
    await gateway.unary(ALICE, "SessionManagement/RestoreSession", request)
    await rig.silence("one")
    assert await printed(gateway, session_id, "print(open('f').read())") == "older\n"
