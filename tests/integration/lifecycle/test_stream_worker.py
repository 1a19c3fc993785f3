"""A whole worker that cannot be dialled: all that a caller can ask goes over its TaskStream."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from grpc import aio

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as artifacts_pb
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2, workspace_files_pb2
from codegen_mcp.coordinator.stream_link import StreamLink
from codegen_mcp.testing.joined import Hub, open_hub
from codegen_mcp.testing.wire import RichError, Wire, dial
from codegen_mcp.testing.worker import in_process_worker

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

MIB = 1024 * 1024


@contextlib.contextmanager
def refused(code: grpc.StatusCode, reason: str = ""):
    with pytest.raises(aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    if reason:
        assert RichError(caught.value).info.reason == reason


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[Hub]:
    """A coordinator with one worker that only its stream reaches."""
    async with (
        open_hub() as opened,
        in_process_worker(
            coordinator_addr=opened.address, advertise_addr="off", worker_id="far", max_sessions=12
        ) as worker,
    ):
        linked = await opened.linked("far")
        assert isinstance(linked.link, StreamLink)
        yield opened
        assert worker.agent is not None


@pytest_asyncio.fixture(loop_scope="module")
async def wire(hub: Hub) -> Wire:
    return hub.wire


def python(code: str) -> tools_pb2.ToolRequest:
    return tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))


async def stdout(wire: Wire, session_id: str, code: str, **fields) -> str:
    last = (await wire.run(session_id, python(code), **fields))[-1]
    assert last.HasField("result"), last
    return last.result.typed_response.run_python.stdout


async def put(wire: Wire, session_id: str, path: str, data: bytes) -> str:
    def chunks():
        header = workspace_files_pb2.UploadHeader(session_id=session_id, path=path)
        yield workspace_files_pb2.UploadChunk(header=header)
        for start in range(0, len(data), MIB):
            yield workspace_files_pb2.UploadChunk(data=data[start : start + MIB])
        end = workspace_files_pb2.UploadEnd(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        yield workspace_files_pb2.UploadChunk(end=end)

    return (await wire.files.Upload(chunks())).sha256


async def get(wire: Wire, session_id: str, path: str) -> bytes:
    request = workspace_files_pb2.DownloadRequest(session_id=session_id, path=path)
    pieces = [chunk async for chunk in wire.files.Download(request)]
    data = b"".join(piece.data for piece in pieces)
    assert pieces[-1].summary.sha256 == hashlib.sha256(data).hexdigest()
    return data


async def test_a_session_lives_its_whole_life_over_the_stream(wire):
    session_id = await wire.session(workspace_id="w", metadata={"a": "1"})
    assert await stdout(wire, session_id, "open('f', 'w').write('kept'); print(6 * 7)") == "42\n"

    status = await wire.sessions.GetSessionStatus(pb.SessionStatusRequest(session_id=session_id))
    assert (status.worker_id, status.info.workspace_id) == ("far", "w")
    await wire.sessions.UpdateSessionMetadata(
        pb.UpdateSessionMetadataRequest(session_id=session_id, metadata={"b": "2"})
    )
    told = await wire.sessions.GetSessionMetadata(
        pb.GetSessionMetadataRequest(session_id=session_id)
    )
    assert dict(told.metadata) == {"a": "1", "b": "2"}
    await wire.sessions.SetSessionMetadata(
        pb.SetSessionMetadataRequest(session_id=session_id, metadata={"c": "3"})
    )
    await wire.sessions.SetIdleTimeout(
        pb.SetIdleTimeoutRequest(session_id=session_id, idle_timeout_seconds=600)
    )

    saved = await wire.sessions.CheckpointSession(pb.CheckpointRequest(session_id=session_id))
    listed = await wire.sessions.ListCheckpoints(pb.ListCheckpointsRequest(session_id=session_id))
    assert [one.checkpoint_id for one in listed.checkpoints] == [saved.checkpoint_id]
    await stdout(wire, session_id, "open('f', 'w').write('changed')")
    await wire.sessions.RestoreSession(pb.RestoreRequest(checkpoint_id=saved.checkpoint_id))
    assert await get(wire, session_id, "f") == b"kept"
    copy = await wire.sessions.RestoreSession(
        pb.RestoreRequest(checkpoint_id=saved.checkpoint_id, create_new_session=True)
    )
    forked = await wire.sessions.ForkSession(pb.ForkRequest(session_id=session_id, count=2))
    for other in (copy.session_id, *forked.session_ids):
        assert await get(wire, other, "f") == b"kept"
    await wire.sessions.DeleteCheckpoint(
        pb.DeleteCheckpointRequest(checkpoint_id=saved.checkpoint_id)
    )

    mine = {
        one.session_id
        for one in (await wire.sessions.ListSessions(pb.ListSessionsRequest())).sessions
    }
    assert {session_id, copy.session_id, *forked.session_ids} <= mine
    for other in (session_id, copy.session_id, *forked.session_ids):
        ended = await wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=other))
        assert ended.destroyed
    with refused(grpc.StatusCode.NOT_FOUND):
        await wire.sessions.GetSessionStatus(pb.SessionStatusRequest(session_id=session_id))


async def test_files_of_any_size_go_both_ways(wire):
    session_id = await wire.session()
    data = bytes(range(256)) * 4096 * 12
    assert await put(wire, session_id, "big", data) == hashlib.sha256(data).hexdigest()
    assert await get(wire, session_id, "big") == data
    assert await put(wire, session_id, "empty", b"") == hashlib.sha256(b"").hexdigest()
    assert await get(wire, session_id, "empty") == b""
    with refused(grpc.StatusCode.NOT_FOUND):
        await get(wire, session_id, "none")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "PATH_ESCAPE"):
        await put(wire, session_id, "../out", data)
    await wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=session_id))


async def test_output_comes_as_it_is_printed_and_every_byte_of_it(wire):
    session_id = await wire.session()
    code = "import sys\nfor n in range(3): sys.stdout.write(chr(97 + n) * 3_000_000)"
    messages = await wire.run(session_id, python(code))
    logged = b"".join(message.log.data for message in messages if message.HasField("log"))
    assert logged == b"a" * 3_000_000 + b"b" * 3_000_000 + b"c" * 3_000_000
    facts = messages[-1].result.metadata
    assert facts.stdout_bytes == 9_000_000
    await wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=session_id))


async def test_tasks_are_looked_at_joined_and_cancelled(wire):
    session_id = await wire.session()
    request = tasks_pb.TaskRequest(
        session_id=session_id,
        task_id="long",
        typed_request=python("print('up', flush=True)\nwhile True: pass"),
        on_disconnect=tasks_pb.ON_DISCONNECT_DETACH,
    )
    call = wire.tasks.ExecuteTask(request)
    assert (await anext(aiter(call))).log.message == "up\n"
    call.cancel()
    asked = tasks_pb.StatusRequest(task_id="long", session_id=session_id)
    assert (await wire.tasks.GetTaskStatus(asked)).task_id == "long"
    attach = tasks_pb.AttachTaskRequest(task_id="long", session_id=session_id)
    joined = aiter(wire.tasks.AttachTask(attach))
    assert (await anext(joined)).log.message == "up\n"
    answer = await wire.tasks.CancelTask(
        tasks_pb.CancelRequest(task_id="long", session_id=session_id)
    )
    assert (answer.cancelled, answer.state) == (True, "running")
    rest = [message async for message in joined]
    assert rest[-1].result.status == tasks_pb.TaskResult.STATUS_CANCELLED
    listed = await wire.tasks.ListTasks(tasks_pb.ListTasksRequest(session_id=session_id))
    assert [task.task_id for task in listed.tasks] == ["long"]
    assert (await wire.tasks.ListTools(tasks_pb.ListToolsRequest())).tools
    await wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=session_id))


async def test_a_caller_that_leaves_ends_its_task(wire):
    session_id = await wire.session()
    request = tasks_pb.TaskRequest(
        session_id=session_id,
        task_id="left",
        typed_request=python("print('up', flush=True)\nwhile True: pass"),
    )
    call = wire.tasks.ExecuteTask(request)
    assert (await anext(aiter(call))).log.message == "up\n"
    call.cancel()
    attach = tasks_pb.AttachTaskRequest(task_id="left", session_id=session_id)
    rest = [message async for message in wire.tasks.AttachTask(attach)]
    assert rest[-1].result.status == tasks_pb.TaskResult.STATUS_CANCELLED
    await wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=session_id))


async def test_artifacts_are_made_listed_and_deleted(wire):
    session_id = await wire.session()
    code = (
        "import os\nos.makedirs('artifacts', exist_ok=True)\nopen('artifacts/a.txt','w').write('x')"
    )
    await stdout(wire, session_id, code)
    listed = await wire.artifacts.ListArtifacts(
        artifacts_pb.ListArtifactsRequest(session_id=session_id)
    )
    assert [one.name for one in listed.artifacts] == ["a.txt"]
    offer = await wire.artifacts.GetUploadURL(
        artifacts_pb.UploadRequest(session_id=session_id, artifact_name="b", size_bytes=1)
    )
    assert offer.upload_url.startswith("http://127.0.0.1:")
    for one in listed.artifacts:
        await wire.artifacts.DeleteArtifact(
            artifacts_pb.DeleteArtifactRequest(artifact_id=one.artifact_id)
        )
    await wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=session_id))


async def test_what_the_worker_refuses_is_told_as_it_was(wire):
    session_id = await wire.session()
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await wire.run(session_id, tools_pb2.ToolRequest())
    await wire.run(session_id, python("1"), task_id="t1", sequence=4)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "OUTCOME_UNKNOWN"):
        await wire.run(session_id, python("1"), task_id="t2", sequence=2)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await wire.session(config=pb.SessionConfig(base_image="debian"))
    last = (
        await wire.run(
            session_id, tools_pb2.ToolRequest(fs_read=tools_pb2.FsReadRequest(path="none"))
        )
    )[-1]
    assert last.error.code == "NOT_FOUND"
    await wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=session_id))


async def test_one_slow_reader_stops_nobody_else(hub, wire):
    slow_id, session_id = await wire.session(), await wire.session()
    async with dial(hub.address) as other:
        much = "import sys\nfor n in range(40): sys.stdout.write('x' * 1_000_000)"
        stalled = other.tasks.ExecuteTask(
            tasks_pb.TaskRequest(session_id=slow_id, task_id="slow", typed_request=python(much))
        )
        assert (await anext(aiter(stalled))).log.data
        data = b"y" * (5 * MIB)
        async with asyncio.timeout(20):
            for number in range(10):
                assert await stdout(wire, session_id, f"print({number})") == f"{number}\n"
            await put(wire, session_id, "f", data)
            assert await get(wire, session_id, "f") == data
        rest = [message async for message in stalled]
    assert rest[-1].result.metadata.stdout_bytes == 40_000_000
    for one in (slow_id, session_id):
        await wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=one))


async def test_its_own_services_take_nobody_but_the_coordinator(hub):
    async with in_process_worker(
        coordinator_addr=hub.address, advertise_addr="off", worker_id="alone"
    ) as worker:
        await hub.linked("alone")
        async with dial(worker.address) as direct:
            with refused(grpc.StatusCode.UNAUTHENTICATED, "COORDINATOR_ONLY"):
                await direct.session()
        session_id = await hub.wire.session(worker_id="alone")
        assert await stdout(hub.wire, session_id, "print(1)") == "1\n"
        await hub.wire.sessions.DestroySession(pb.DestroySessionRequest(session_id=session_id))
