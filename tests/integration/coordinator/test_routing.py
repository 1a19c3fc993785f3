"""Calls through a coordinator reach the worker that holds the session, over real gRPC."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from grpc_health.v1 import health_pb2

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as artifacts_pb
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.task_streams import EXECUTE
from codegen_mcp.testing.coordinator_rig import ALICE, CoordinatorRig, coordinator_rig
from codegen_mcp.testing.wire import RichError, Wire

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[CoordinatorRig]:
    async with coordinator_rig("one", "two", max_sessions=12) as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def alice(rig: CoordinatorRig) -> AsyncIterator[Wire]:
    async with rig.wire("alice") as wire:
        yield wire
        for info in (await wire.sessions.ListSessions(sessions_pb.ListSessionsRequest())).sessions:
            await wire.sessions.DestroySession(
                sessions_pb.DestroySessionRequest(session_id=info.session_id, force=True)
            )


WAIT = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
GO = tools_pb2.ToolRequest(fs_write=tools_pb2.FsWriteRequest(path="go", contents=""))


def python(code: str) -> tools_pb2.ToolRequest:
    return tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))


async def test_a_session_stays_on_its_worker_and_keeps_its_files(alice: Wire) -> None:
    sessions = [await alice.session() for _ in range(6)]
    for number, session_id in enumerate(sessions):
        await alice.run(session_id, python(f"open('n', 'w').write('{number}')"))
    for number, session_id in enumerate(sessions):
        *_, last = await alice.run(session_id, python("print(open('n').read())"))
        assert last.result.typed_response.run_python.stdout == f"{number}\n"


async def test_tasks_ask_the_directory_for_their_own_session_alone_and_once(
    rig: CoordinatorRig, alice: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, session_id = [await alice.session() for _ in range(6)]
    directory, mine = rig.routing.directory, asyncio.current_task()
    asked: list[tuple[object, ...]] = []

    def counted(name: str) -> None:
        real = getattr(directory, name)

        async def call(*arguments: object, **named: object) -> object:
            if asyncio.current_task() is mine:  # heartbeats ask too
                asked.append((name, *arguments))
            return await real(*arguments, **named)

        monkeypatch.setattr(directory, name, call)

    counted("get")
    counted("sessions")
    rig.routing.router._routes.forget(session_id)
    echo = tools_pb2.ToolRequest(echo=tools_pb2.EchoRequest(message="here"))
    for _ in range(3):
        request = tasks_pb.TaskRequest(session_id=session_id, typed_request=echo)
        messages = [one async for one in rig.gateway.tasks(ALICE, EXECUTE, request)]
        assert messages[-1].result.typed_response.echo.message == "here"
    assert asked == [("get", session_id)]


async def test_sessions_are_spread_over_the_workers(alice: Wire) -> None:
    answers = await asyncio.gather(
        *(alice.sessions.CreateSession(sessions_pb.CreateSessionRequest()) for _ in range(12))
    )
    assert {answer.worker_id for answer in answers} == {"one", "two"}


async def test_a_named_worker_gets_the_session(alice: Wire) -> None:
    for name in ("one", "two"):
        request = sessions_pb.CreateSessionRequest(worker_id=name)
        assert (await alice.sessions.CreateSession(request)).worker_id == name
    with pytest.raises(aio.AioRpcError) as caught:
        await alice.sessions.CreateSession(sessions_pb.CreateSessionRequest(worker_id="three"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_output_arrives_while_the_code_runs(alice: Wire) -> None:
    session_id = await alice.session()
    code = f"print('a', flush=True)\n{WAIT}\nprint('b')"
    call = alice.tasks.ExecuteTask(
        tasks_pb.TaskRequest(session_id=session_id, typed_request=python(code))
    )
    kinds = []
    async for message in call:
        kinds.append(message.WhichOneof("payload"))
        if message.log.message == "a\n":
            await alice.run(session_id, GO)
    assert kinds[-1] == "result"
    assert kinds.count("log") == 2


async def test_a_large_output_comes_whole(alice: Wire) -> None:
    session_id = await alice.session()
    messages = await alice.run(session_id, python("print('x' * 5_000_000)"))
    data = b"".join(message.log.data for message in messages)
    assert data == b"x" * 5_000_000 + b"\n"


async def test_a_task_is_cancelled_when_its_only_caller_leaves(alice: Wire) -> None:
    session_id = await alice.session()
    call = alice.tasks.ExecuteTask(
        tasks_pb.TaskRequest(
            task_id="long",
            session_id=session_id,
            typed_request=python("print('up', flush=True)\nimport time; time.sleep(60)"),
        )
    )
    await call.read()
    call.cancel()
    attach = alice.tasks.AttachTask(
        tasks_pb.AttachTaskRequest(task_id="long", session_id=session_id)
    )
    *_, last = [message async for message in attach]
    assert last.result.status == tasks_pb.TaskResult.STATUS_CANCELLED


async def test_a_detached_task_goes_on_without_its_caller(alice: Wire) -> None:
    session_id = await alice.session()
    call = alice.tasks.ExecuteTask(
        tasks_pb.TaskRequest(
            task_id="kept",
            session_id=session_id,
            typed_request=python(f"print('up', flush=True)\n{WAIT}\nprint('done')"),
            on_disconnect=tasks_pb.ON_DISCONNECT_DETACH,
        )
    )
    await call.read()
    call.cancel()
    await alice.run(session_id, GO)
    attach = alice.tasks.AttachTask(tasks_pb.AttachTaskRequest(task_id="kept"))
    *_, last = [message async for message in attach]
    assert last.result.typed_response.run_python.stdout == "up\ndone\n"


async def test_a_task_alone_names_its_session(alice: Wire) -> None:
    session_id = await alice.session()
    await alice.run(session_id, python("print(1)"), task_id="mine")
    status = await alice.tasks.GetTaskStatus(tasks_pb.StatusRequest(task_id="mine"))
    assert status.status == tasks_pb.TaskResult.STATUS_SUCCESS
    listed = await alice.tasks.ListTasks(tasks_pb.ListTasksRequest(session_id=session_id))
    assert [task.task_id for task in listed.tasks] == ["mine"]


async def test_files_go_in_and_out(alice: Wire) -> None:
    session_id = await alice.session()
    data = bytes(range(256)) * 8192

    async def chunks() -> AsyncIterator[files_pb.UploadChunk]:
        yield files_pb.UploadChunk(header=files_pb.UploadHeader(session_id=session_id, path="blob"))
        for start in range(0, len(data), 1 << 20):
            yield files_pb.UploadChunk(data=data[start : start + (1 << 20)])
        yield files_pb.UploadChunk(
            end=files_pb.UploadEnd(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        )

    summary = await alice.files.Upload(chunks())
    assert summary.size == len(data)
    request = files_pb.DownloadRequest(session_id=session_id, path="blob")
    got = [chunk async for chunk in alice.files.Download(request)]
    assert b"".join(chunk.data for chunk in got) == data
    assert got[-1].summary.sha256 == hashlib.sha256(data).hexdigest()


async def test_a_file_that_is_not_there_is_told_as_the_worker_says_it(alice: Wire) -> None:
    session_id = await alice.session()
    request = files_pb.DownloadRequest(session_id=session_id, path="nothing")
    with pytest.raises(aio.AioRpcError) as caught:
        await alice.files.Download(request).read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "nothing" in (caught.value.details() or "")


async def test_metadata_and_idle_time_are_set_where_the_session_is(alice: Wire) -> None:
    session_id = await alice.session()
    await alice.sessions.SetSessionMetadata(
        sessions_pb.SetSessionMetadataRequest(session_id=session_id, metadata={"a": "1"})
    )
    await alice.sessions.UpdateSessionMetadata(
        sessions_pb.UpdateSessionMetadataRequest(session_id=session_id, metadata={"b": "2"})
    )
    await alice.sessions.SetIdleTimeout(
        sessions_pb.SetIdleTimeoutRequest(session_id=session_id, idle_timeout_seconds=77)
    )
    answer = await alice.sessions.GetSessionMetadata(
        sessions_pb.GetSessionMetadataRequest(session_id=session_id)
    )
    assert answer.metadata == {"a": "1", "b": "2"}


async def test_the_list_has_the_sessions_of_all_workers_page_by_page(alice: Wire) -> None:
    made = {await alice.session() for _ in range(5)}
    found: set[str] = set()
    token = ""
    while True:
        page = await alice.sessions.ListSessions(
            sessions_pb.ListSessionsRequest(page_size=2, page_token=token)
        )
        assert len(page.sessions) <= 2
        found.update(info.session_id for info in page.sessions)
        token = page.next_page_token
        if not token:
            break
    assert found == made


async def test_capacity_is_that_of_all_workers_and_shows_only_ones_own(alice: Wire) -> None:
    mine = await alice.session()
    capacity = await alice.sessions.GetCapacity(sessions_pb.CapacityRequest())
    assert capacity.total_sessions == 24
    assert [info.session_id for info in capacity.sessions] == [mine]


async def test_checkpoints_forks_and_restores_are_routed(alice: Wire) -> None:
    session_id = await alice.session()
    await alice.run(session_id, python("open('f', 'w').write('kept')"))
    saved = await alice.sessions.CheckpointSession(
        sessions_pb.CheckpointRequest(session_id=session_id, checkpoint_name="first")
    )
    copies = await alice.sessions.ForkSession(
        sessions_pb.ForkRequest(session_id=session_id, count=2)
    )
    restored = await alice.sessions.RestoreSession(
        sessions_pb.RestoreRequest(checkpoint_id=saved.checkpoint_id, create_new_session=True)
    )
    await alice.run(session_id, python("open('f', 'w').write('spoilt')"))
    back = await alice.sessions.RestoreSession(
        sessions_pb.RestoreRequest(checkpoint_id=saved.checkpoint_id)
    )
    assert back.session_id == session_id
    for one in (session_id, restored.session_id, *copies.session_ids):
        *_, last = await alice.run(one, python("print(open('f').read())"))
        assert last.result.typed_response.run_python.stdout == "kept\n"
    listed = await alice.sessions.ListCheckpoints(sessions_pb.ListCheckpointsRequest())
    assert saved.checkpoint_id in [one.checkpoint_id for one in listed.checkpoints]
    await alice.sessions.DeleteCheckpoint(
        sessions_pb.DeleteCheckpointRequest(checkpoint_id=saved.checkpoint_id)
    )
    with pytest.raises(aio.AioRpcError) as caught:
        await alice.sessions.GetCheckpoint(
            sessions_pb.GetCheckpointRequest(checkpoint_id=saved.checkpoint_id)
        )
    assert RichError(caught.value).info.reason == "CHECKPOINT_NOT_FOUND"


async def test_a_checkpoint_outlives_its_session_and_is_restored_on_any_worker(alice: Wire) -> None:
    session_id = await alice.session(worker_id="one")
    await alice.run(session_id, python("open('f', 'w').write('kept')"))
    gone = await alice.sessions.DestroySession(
        sessions_pb.DestroySessionRequest(session_id=session_id, save_checkpoint=True)
    )
    restored = await alice.sessions.RestoreSession(
        sessions_pb.RestoreRequest(
            checkpoint_id=gone.checkpoint_id, create_new_session=True, worker_id="two"
        )
    )
    assert restored.worker_id == "two"
    *_, last = await alice.run(restored.session_id, python("print(open('f').read())"))
    assert last.result.typed_response.run_python.stdout == "kept\n"


async def test_artifacts_that_code_leaves_are_found(alice: Wire) -> None:
    session_id = await alice.session()
    code = (
        "import os; os.makedirs('artifacts', exist_ok=True); open('artifacts/a.txt','w').write('x')"
    )
    *_, last = await alice.run(session_id, python(code))
    (artifact_id,) = last.result.artifacts
    listed = await alice.artifacts.ListArtifacts(
        artifacts_pb.ListArtifactsRequest(session_id=session_id)
    )
    assert [one.artifact_id for one in listed.artifacts] == [artifact_id]
    deleted = await alice.artifacts.DeleteArtifact(
        artifacts_pb.DeleteArtifactRequest(artifact_id=artifact_id)
    )
    assert deleted.deleted


async def test_what_only_a_coordinator_may_choose_is_refused_by_name(alice: Wire) -> None:
    for field in ({"session_id": "ses_" + "0" * 32}, {"epoch": 7}):
        with pytest.raises(aio.AioRpcError) as caught:
            await alice.sessions.CreateSession(sessions_pb.CreateSessionRequest(**field))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert next(iter(field)) in (caught.value.details() or "")


async def test_an_epoch_in_a_callers_metadata_means_nothing(alice: Wire) -> None:
    session_id = await alice.session()
    answer = await alice.sessions.GetSessionStatus(
        sessions_pb.SessionStatusRequest(session_id=session_id),
        metadata=(("x-codegen-epoch", "99"),),
    )
    assert answer.session_id == session_id


async def test_the_request_id_reaches_worker_and_answer(alice: Wire) -> None:
    call = alice.sessions.CreateSession(
        sessions_pb.CreateSessionRequest(), metadata=(("x-request-id", "req-of-mine"),)
    )
    await call
    assert ("x-request-id", "req-of-mine") in [
        tuple(pair) for pair in await call.trailing_metadata()
    ]


async def test_it_is_healthy_and_shows_its_services(rig: CoordinatorRig, alice: Wire) -> None:
    answer = await alice.health.Check(
        health_pb2.HealthCheckRequest(service="codegen.v1.TaskExecution")
    )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_every_tool_is_listed_once(alice: Wire) -> None:
    names = [one.name for one in (await alice.tasks.ListTools(tasks_pb.ListToolsRequest())).tools]
    assert len(names) == len(set(names))
    assert {"run.python", "echo"} <= set(names)


async def test_another_principal_finds_nothing_by_any_id(rig: CoordinatorRig, alice: Wire) -> None:
    session_id = await alice.session()
    await alice.run(session_id, python("print(1)"), task_id="secret")
    saved = await alice.sessions.CheckpointSession(
        sessions_pb.CheckpointRequest(session_id=session_id)
    )
    async with rig.wire("bob") as bob:
        calls = [
            bob.sessions.GetSessionStatus(sessions_pb.SessionStatusRequest(session_id=session_id)),
            bob.sessions.DestroySession(sessions_pb.DestroySessionRequest(session_id=session_id)),
            bob.sessions.ForkSession(sessions_pb.ForkRequest(session_id=session_id)),
            bob.sessions.RestoreSession(
                sessions_pb.RestoreRequest(checkpoint_id=saved.checkpoint_id)
            ),
            bob.sessions.DeleteCheckpoint(
                sessions_pb.DeleteCheckpointRequest(checkpoint_id=saved.checkpoint_id)
            ),
            bob.tasks.GetTaskStatus(tasks_pb.StatusRequest(task_id="secret")),
            bob.tasks.CancelTask(tasks_pb.CancelRequest(task_id="secret", session_id=session_id)),
        ]
        for call in calls:
            with pytest.raises(aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        listed = await bob.sessions.ListSessions(sessions_pb.ListSessionsRequest())
        assert not listed.sessions
        found = await bob.sessions.ListCheckpoints(
            sessions_pb.ListCheckpointsRequest(session_id=session_id)
        )
        assert not found.checkpoints
