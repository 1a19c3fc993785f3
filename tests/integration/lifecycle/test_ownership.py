"""Who owns a session: ids that a coordinator chose, epochs, grants, fences, and its credential."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from grpc_health.v1 import health_pb2

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2, tools_pb2, workspace_files_pb2
from codegen_mcp.bootstrap import Worker
from codegen_mcp.core.errors import Conflict
from codegen_mcp.server.caller_gate import EPOCH
from codegen_mcp.testing.wire import RichError, Wire, dial, memory_worker
from codegen_mcp.testing.worker import in_process_worker, state_directory

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


def an_id() -> str:
    return f"ses_{secrets.token_hex(16)}"


def under(epoch: int) -> tuple[tuple[str, str], ...]:
    """Metadata of a call that means this epoch."""
    return ((EPOCH, str(epoch)),)


@contextlib.contextmanager
def refused(code: grpc.StatusCode, reason: str = ""):
    with pytest.raises(aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    if reason:
        assert RichError(caught.value).info.reason == reason


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[Worker]:
    async with in_process_worker(max_sessions=12) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def wire(worker: Worker) -> AsyncIterator[Wire]:
    async with dial(worker.address) as opened:
        yield opened
    for view in worker.engine.sessions.list():
        await worker.engine.sessions.destroy(view.session_id, force=True)


async def status(wire: Wire, session_id: str, epoch: int = 0) -> pb.SessionStatusResponse:
    request = pb.SessionStatusRequest(session_id=session_id)
    return await wire.sessions.GetSessionStatus(request, metadata=under(epoch))


def python(code: str) -> tools_pb2.ToolRequest:
    return tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))


async def run(wire: Wire, session_id: str, code: str, **fields) -> str:
    last = (await wire.run(session_id, python(code), **fields))[-1]
    assert last.HasField("result"), last
    return last.result.typed_response.run_python.stdout


async def save(wire: Wire, session_id: str) -> pb.CheckpointMetadata:
    request = pb.CheckpointRequest(session_id=session_id, incremental=True)
    return (await wire.sessions.CheckpointSession(request)).metadata


async def test_a_session_has_the_id_and_the_epoch_that_a_coordinator_chose(wire):
    wanted = an_id()
    assert await wire.session(session_id=wanted, epoch=3) == wanted
    info = (await status(wire, wanted, epoch=3)).info
    assert (info.epoch, info.last_checkpoint_id, info.last_sequence) == (3, "", 0)
    await run(wire, wanted, "open('a', 'w').write('a')", sequence=7, task_id="t7")
    saved = await save(wire, wanted)
    assert saved.checkpoint_id == f"{wanted}.3.1"
    listed = (await wire.sessions.ListSessions(pb.ListSessionsRequest())).sessions
    assert [(one.epoch, one.last_checkpoint_id, one.last_sequence) for one in listed] == [
        (3, saved.checkpoint_id, 7)
    ]


async def test_an_id_that_is_held_is_refused_and_what_it_names_stays(wire):
    wanted = await wire.session(session_id=an_id(), workspace_id="first")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "SESSION_EXISTS"):
        await wire.session(session_id=wanted, workspace_id="second")
    assert (await status(wire, wanted)).info.workspace_id == "first"


async def test_of_two_creations_of_one_id_at_once_one_is_made(wire):
    wanted = an_id()
    made = await asyncio.gather(
        *(wire.session(session_id=wanted) for _ in range(3)), return_exceptions=True
    )
    errors = [one for one in made if isinstance(one, aio.AioRpcError)]
    assert len(errors) == 2
    assert {error.code() for error in errors} == {grpc.StatusCode.ALREADY_EXISTS}


@pytest.mark.parametrize("bad", ["ses_1", "x", f"ses_{'A' * 32}", f"../{'0' * 32}", "ses_" * 100])
async def test_an_id_of_another_form_is_refused(wire, bad):
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await wire.session(session_id=bad)


async def test_a_call_for_another_epoch_is_refused_whatever_it_asks(wire):
    held = await wire.session(session_id=an_id(), epoch=2)
    header = workspace_files_pb2.UploadHeader(session_id=held, path="f")
    calls = [
        lambda m: status_of(wire, held, m),
        lambda m: wire.sessions.DestroySession(
            pb.DestroySessionRequest(session_id=held), metadata=m
        ),
        lambda m: wire.sessions.ForkSession(pb.ForkRequest(session_id=held), metadata=m),
        lambda m: stream(
            wire.tasks.ExecuteTask(
                task_execution_pb2.TaskRequest(session_id=held, typed_request=python("1")),
                metadata=m,
            )
        ),
        lambda m: stream(
            wire.files.Download(
                workspace_files_pb2.DownloadRequest(session_id=held, path="f"), metadata=m
            )
        ),
        lambda m: wire.files.Upload(
            iter([workspace_files_pb2.UploadChunk(header=header)]), metadata=m
        ),
    ]
    for call in calls:
        for epoch in (1, 3):
            with refused(grpc.StatusCode.ABORTED, "STALE_EPOCH"):
                await call(under(epoch))
    assert (await status(wire, held, epoch=2)).info.epoch == 2


async def status_of(wire, session_id, metadata):
    request = pb.SessionStatusRequest(session_id=session_id)
    return await wire.sessions.GetSessionStatus(request, metadata=metadata)


async def stream(call) -> list:
    return [message async for message in call]


@pytest.mark.parametrize("bad", ["x", "-1", "1.5", "12345678901", ""])
async def test_an_epoch_that_is_no_number_is_refused(wire, bad):
    held = await wire.session()
    request = pb.SessionStatusRequest(session_id=held)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await wire.sessions.GetSessionStatus(request, metadata=((EPOCH, bad),))


async def test_copies_have_the_ids_that_were_chosen_and_epochs_of_their_own(wire):
    parent = await wire.session(session_id=an_id(), epoch=5)
    wanted = [an_id(), an_id()]
    answer = await wire.sessions.ForkSession(
        pb.ForkRequest(session_id=parent, new_session_ids=wanted)
    )
    assert list(answer.session_ids) == wanted
    assert [(await status(wire, one)).info.epoch for one in wanted] == [1, 1]
    for ids, count in (([an_id()], 2), ([wanted[0]], 1), ([an_id()] * 2, 2), (["x"], 1)):
        with pytest.raises(aio.AioRpcError):
            await wire.sessions.ForkSession(
                pb.ForkRequest(session_id=parent, new_session_ids=ids, count=count)
            )
    assert len((await wire.sessions.ListSessions(pb.ListSessionsRequest())).sessions) == 3


async def test_a_new_owner_begins_with_a_full_checkpoint_and_goes_on_from_the_newest(wire):
    held = await wire.session(session_id=an_id())
    for number in (1, 2):
        await run(wire, held, f"open('f{number}', 'w').write('x')")
        saved = await save(wire, held)
        assert saved.checkpoint_id == f"{held}.1.{number}"
    assert saved.parent_checkpoint_id == f"{held}.1.1"
    await wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=held))

    restored = await wire.sessions.RestoreSession(
        pb.RestoreRequest(checkpoint_id=saved.checkpoint_id, session_id=held, epoch=4)
    )
    assert restored.session_id == held
    assert (await status(wire, held, epoch=4)).last_checkpoint_id == saved.checkpoint_id
    await run(wire, held, "open('f3', 'w').write('x')")
    first = await save(wire, held)
    assert (first.checkpoint_id, first.parent_checkpoint_id) == (f"{held}.4.3", "")
    await run(wire, held, "open('f4', 'w').write('x')")
    second = await save(wire, held)
    assert (second.checkpoint_id, second.parent_checkpoint_id) == (f"{held}.4.4", f"{held}.4.3")

    listed = await wire.sessions.ListCheckpoints(pb.ListCheckpointsRequest(session_id=held))
    assert [one.checkpoint_id for one in listed.checkpoints] == [
        f"{held}.4.4",
        f"{held}.4.3",
        f"{held}.1.2",
        f"{held}.1.1",
    ]
    await wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=held))
    # An older owner may not come back over a newer one's state; without an epoch it goes on.
    with refused(grpc.StatusCode.ABORTED, "STALE_EPOCH"):
        await wire.sessions.RestoreSession(
            pb.RestoreRequest(checkpoint_id=f"{held}.1.2", session_id=held, epoch=2)
        )
    await wire.sessions.RestoreSession(pb.RestoreRequest(checkpoint_id=f"{held}.1.2"))
    assert (await status(wire, held)).info.epoch == 4
    assert await run(wire, held, "import os; print(sorted(os.listdir()))") == "['f1', 'f2']\n"


async def test_a_copy_of_a_checkpoint_has_the_id_that_was_chosen(wire):
    held = await wire.session(session_id=an_id())
    saved = await save(wire, held)
    wanted = an_id()
    request = pb.RestoreRequest(
        checkpoint_id=saved.checkpoint_id, create_new_session=True, session_id=wanted, epoch=2
    )
    assert (await wire.sessions.RestoreSession(request)).session_id == wanted
    assert (await status(wire, wanted)).info.epoch == 2
    with refused(grpc.StatusCode.ALREADY_EXISTS, "SESSION_EXISTS"):
        await wire.sessions.RestoreSession(request)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await wire.sessions.RestoreSession(
            pb.RestoreRequest(checkpoint_id=saved.checkpoint_id, session_id=an_id())
        )


async def test_a_fenced_session_ends_at_once_without_a_save_and_does_not_come_back(worker, wire):
    config = pb.SessionConfig(auto_restore=True)
    held = await wire.session(session_id=an_id(), epoch=2, config=config)
    saved = await save(wire, held)
    running = wire.tasks.ExecuteTask(
        task_execution_pb2.TaskRequest(
            session_id=held, typed_request=python("print('up', flush=True)\nwhile True: pass")
        )
    )
    answers = aiter(running)
    assert (await anext(answers)).log.message == "up\n"
    ownership = worker.engine.sessions.ownership
    await ownership.fence(held, 1)  # of an owner before this one: nothing happens
    await ownership.fence(held, 2)
    assert held not in ownership.held()
    with contextlib.suppress(aio.AioRpcError):
        async for message in answers:
            assert message.result.status != task_execution_pb2.TaskResult.STATUS_SUCCESS
    for metadata in (under(2), under(1)):
        with refused(grpc.StatusCode.ABORTED, "STALE_EPOCH"):
            await stream(
                wire.tasks.ExecuteTask(
                    task_execution_pb2.TaskRequest(session_id=held, typed_request=python("1")),
                    metadata=metadata,
                )
            )
    with refused(grpc.StatusCode.ABORTED, "STALE_EPOCH"):  # it asked to be restored by itself
        await stream(
            wire.tasks.ExecuteTask(
                task_execution_pb2.TaskRequest(session_id=held, typed_request=python("1"))
            )
        )
    listed = await wire.sessions.ListCheckpoints(pb.ListCheckpointsRequest(session_id=held))
    assert [one.checkpoint_id for one in listed.checkpoints] == [saved.checkpoint_id]
    # Whoever owns it next may bring it here again.
    await wire.sessions.RestoreSession(
        pb.RestoreRequest(checkpoint_id=saved.checkpoint_id, session_id=held, epoch=3)
    )
    assert (await status(wire, held, epoch=3)).info.epoch == 3


async def test_a_session_that_idled_out_comes_back_under_the_epoch_of_the_call(worker, wire):
    config = pb.SessionConfig(auto_restore=True)
    held = await wire.session(session_id=an_id(), config=config)
    await save(wire, held)
    await worker.engine.sessions.destroy(held, force=True)
    messages = await stream(
        wire.tasks.ExecuteTask(
            task_execution_pb2.TaskRequest(session_id=held, typed_request=python("print(1)")),
            metadata=under(6),
        )
    )
    assert messages[0].progress.stage == "restored"
    assert (await status(wire, held, epoch=6)).info.epoch == 6


async def test_a_granted_epoch_is_durable_and_only_rises():
    async with state_directory() as state:
        async with in_process_worker(base_workspace=state) as first, dial(first.address) as wire:
            held = await wire.session(session_id=an_id())
            await first.engine.sessions.ownership.grant(held, 4)
            await first.engine.sessions.ownership.grant(held, 2)
            await first.engine.sessions.ownership.grant(an_id(), 9)  # of no session here
            assert dict(first.engine.sessions.ownership.held()) == {held: 4}
            with refused(grpc.StatusCode.ABORTED, "STALE_EPOCH"):
                await status(wire, held, epoch=1)
            assert (await save(wire, held)).checkpoint_id == f"{held}.4.1"
        async with in_process_worker(base_workspace=state) as second, dial(second.address) as wire:
            info = (await status(wire, held, epoch=4)).info
            assert (info.epoch, info.incarnation) == (4, 2)
            assert info.last_checkpoint_id == f"{held}.4.1"


async def test_what_another_owner_is_storing_is_not_cleared_away(worker, wire):
    held = await wire.session(session_id=an_id(), epoch=2)
    store = Path(worker.engine.host.state.root) / "store"
    others = [f"{held}/{epoch:010d}/0000000007.tar.gz" for epoch in (1, 3)]
    (bucket,) = [path for path in (store, store / "objects") if path.is_dir()][-1:]
    for key in others:
        path = bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    await save(wire, held)
    assert all((bucket / key).exists() for key in others)
    await save(wire, held)
    assert [(bucket / key).exists() for key in others] == [False, True]


async def test_a_worker_with_a_credential_serves_its_coordinator_alone():
    async with memory_worker(dial_token="s3cret-of-this-start") as worker:
        wire = worker.wire
        for metadata in ((), (("authorization", "Bearer other"),), (("authorization", "s3cret"),)):
            with refused(grpc.StatusCode.UNAUTHENTICATED, "COORDINATOR_ONLY"):
                await wire.sessions.GetCapacity(pb.CapacityRequest(), metadata=metadata)
            with refused(grpc.StatusCode.UNAUTHENTICATED):
                await stream(
                    wire.tasks.ExecuteTask(task_execution_pb2.TaskRequest(), metadata=metadata)
                )
        token = (("authorization", "Bearer s3cret-of-this-start"),)
        answer = await wire.sessions.GetCapacity(pb.CapacityRequest(), metadata=token)
        assert answer.worker_id == "memory-worker"
        health = await wire.health.Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_engine_in_memory_holds_sessions_by_the_same_rules():
    async with memory_worker() as worker:
        wanted = await worker.wire.session(session_id=an_id(), epoch=2)
        with refused(grpc.StatusCode.ALREADY_EXISTS, "SESSION_EXISTS"):
            await worker.wire.session(session_id=wanted)
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await worker.wire.session(session_id="x")
        with refused(grpc.StatusCode.ABORTED, "STALE_EPOCH"):
            await status(worker.wire, wanted, epoch=1)
        ownership = worker.engine.sessions.ownership
        await ownership.grant(wanted, 3)
        assert dict(ownership.held()) == {wanted: 3}
        await ownership.fence(wanted, 3)
        assert dict(ownership.held()) == {}
        with pytest.raises(Conflict):
            ownership.check(wanted, 3)
