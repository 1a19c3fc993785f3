"""Workers by others, which know the plain protocol alone, under a coordinator of ours."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2, tools_pb2, workspace_files_pb2
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as lifecycle_pb
from codegen_mcp.coordinator.auth.token_entry import TokenKind
from codegen_mcp.testing.access_rig import new_entry, write_tokens
from codegen_mcp.testing.joined import Hub, open_hub
from codegen_mcp.testing.plain_worker import PlainWorker, plain_worker
from codegen_mcp.testing.wire import RichError, dial, memory_worker

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


def echo(text: str = "hi") -> tools_pb2.ToolRequest:
    return tools_pb2.ToolRequest(echo=tools_pb2.EchoRequest(message=text))


def python(code: str) -> tools_pb2.ToolRequest:
    return tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))


@contextlib.contextmanager
def refused(code: grpc.StatusCode, reason: str = ""):
    with pytest.raises(aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    if reason:
        assert RichError(caught.value).info.reason == reason


@asynccontextmanager
async def joined(
    hub: Hub, worker_id: str = "plain", grpc_address: str = "", **options
) -> AsyncIterator[PlainWorker]:
    """A plain worker that is registered, beats, and has its stream open."""
    async with plain_worker(hub.address, worker_id, **options) as worker:
        answer = await worker.register(grpc_address=grpc_address)
        assert answer.accepted
        await worker.open_stream()
        beating = asyncio.create_task(beat_on(worker))
        await hub.linked(worker_id)
        try:
            yield worker
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)


async def beat_on(worker: PlainWorker) -> None:
    while True:
        await worker.beat()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("names_itself", [True, False])
@pytest.mark.parametrize("own_ids", [True, False])
async def test_a_caller_uses_a_session_on_a_worker_by_others(names_itself, own_ids):
    async with (
        open_hub() as hub,
        joined(hub, names_itself=names_itself, own_ids=own_ids) as worker,
    ):
        made = await hub.wire.sessions.CreateSession(
            pb.CreateSessionRequest(
                workspace_id="w",
                user_id="u",
                metadata={"a": "b"},
                config=pb.SessionConfig(env_vars={"X": "1"}),
            )
        )
        assert made.session_id in worker.sessions
        assert (made.worker_id, dict(made.metadata)) == ("plain", {"a": "b"})
        (asked,) = worker.sessions.values()
        assert (asked.workspace_id, asked.user_id) == ("w", "u")
        assert dict(asked.env_vars) == {"X": "1"}
        (only,) = await hub.wire.run(made.session_id, echo("hello"), task_id="t1")
        assert only.task_id == "t1"
        assert only.result.typed_response.echo.message == "hello"
        assert only.result.status == task_execution_pb2.TaskResult.STATUS_SUCCESS


async def test_each_of_several_streams_without_a_name_is_its_own_workers():
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(open_hub())
        names = ["one", "two", "three"]
        workers = [
            await stack.enter_async_context(plain_worker(hub.address, name, names_itself=False))
            for name in names
        ]
        await asyncio.gather(*(worker.register() for worker in workers))
        await asyncio.gather(*(worker.open_stream() for worker in workers))
        for worker in workers:
            await hub.linked(worker.worker_id)
        for worker in workers:
            made = await hub.wire.session(worker_id=worker.worker_id)
            assert list(worker.sessions) == [made]


async def test_a_stream_of_which_nobody_knows_whose_it_is_is_refused():
    async with open_hub() as hub, plain_worker(hub.address, names_itself=False) as stranger:
        await stranger.open_stream()
        error = await stranger.stream_ended()
        assert error is not None
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    async with open_hub() as hub, plain_worker(hub.address) as unregistered:
        await unregistered.open_stream()
        error = await unregistered.stream_ended()
        assert error is not None
        assert error.code() is grpc.StatusCode.NOT_FOUND
        with refused(grpc.StatusCode.NOT_FOUND, "WORKER_NOT_FOUND"):
            await unregistered.beat()


async def test_output_and_errors_reach_the_caller_as_they_come():
    async def run(worker: PlainWorker, assignment: lifecycle_pb.TaskAssignment) -> str:
        await worker.say(assignment, "one\n")
        await worker.say(assignment, "two\n")
        return "done"

    async with open_hub() as hub, joined(hub, run=run):
        session_id = await hub.wire.session()
        messages = await hub.wire.run(session_id, python("x"))
        texts = [message.log.message for message in messages[:-1]]
        assert texts == ["one\n", "two\n"]
        assert messages[-1].result.typed_response.run_python.stdout == "done"


async def test_the_refusal_of_a_session_is_told_on():
    async with open_hub() as hub, joined(hub):
        with pytest.raises(aio.AioRpcError) as caught:
            await hub.wire.session(metadata={"refuse": "no room today"})
        assert caught.value.code() in {
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.UNAVAILABLE,
        }


async def test_what_the_plain_protocol_cannot_say_is_said():
    async with open_hub() as hub, joined(hub) as worker:
        session_id = await hub.wire.session()
        sessions, missing = hub.wire.sessions, grpc.StatusCode.UNIMPLEMENTED
        with refused(missing, "NO_FRAME"):
            await sessions.CheckpointSession(pb.CheckpointRequest(session_id=session_id))
        with refused(missing, "NO_FRAME"):
            await sessions.ForkSession(pb.ForkRequest(session_id=session_id))
        with refused(missing, "NO_FRAME"):
            await sessions.SetSessionMetadata(
                pb.SetSessionMetadataRequest(session_id=session_id, metadata={"a": "b"})
            )
        with refused(missing, "NO_FRAME"):
            download = workspace_files_pb2.DownloadRequest(session_id=session_id, path="f")
            async for _ in hub.wire.files.Download(download):
                pass
        with refused(missing, "NO_FRAME"):
            header = workspace_files_pb2.UploadHeader(session_id=session_id, path="f")
            chunk = workspace_files_pb2.UploadChunk(header=header)
            await hub.wire.files.Upload(iter([chunk]))
        with refused(missing, "NO_FRAME"):
            attach = task_execution_pb2.AttachTaskRequest(session_id=session_id, task_id="t")
            async for _ in hub.wire.tasks.AttachTask(attach):
                pass
        assert {frame.WhichOneof("message") for frame in worker.frames} == {"session_create"}
        assert (await hub.wire.run(session_id, echo()))[-1].HasField("result")


async def test_a_task_goes_on_over_a_broken_stream_and_runs_once():
    gate = asyncio.Event()

    async def run(worker: PlainWorker, assignment: lifecycle_pb.TaskAssignment) -> str:
        await gate.wait()
        return "after all"

    async with open_hub() as hub, joined(hub, run=run) as worker:
        session_id = await hub.wire.session()
        task = asyncio.create_task(hub.wire.run(session_id, python("x"), task_id="t1"))
        async with asyncio.timeout(10):
            while not worker.ran:
                await asyncio.sleep(0.01)
        await worker.drop_stream()
        await worker.open_stream()
        gate.set()
        async with asyncio.timeout(10):
            last = (await task)[-1]
        assert last.result.typed_response.run_python.stdout == "after all"
        assert worker.ran == ["t1"]
        assert {one.task_id for one in worker.assignments} == {"t1"}


async def test_a_worker_that_falls_silent_is_lost_and_its_task_has_an_end():
    async def run(worker: PlainWorker, assignment: lifecycle_pb.TaskAssignment) -> str:
        await asyncio.Event().wait()
        return ""

    async with open_hub() as hub, plain_worker(hub.address, run=run) as worker:
        await worker.register()
        await worker.open_stream()
        await hub.linked("plain")
        session_id = await hub.wire.session()
        async with asyncio.timeout(20):
            last = (await hub.wire.run(session_id, python("x")))[-1]
        assert last.error.code == "UNAVAILABLE"
        assert "OUTCOME_UNKNOWN" in last.error.details
        with refused(grpc.StatusCode.NOT_FOUND):
            await hub.wire.run(session_id, echo())


async def test_a_worker_by_others_that_registers_again_keeps_its_sessions():
    async with open_hub() as hub, plain_worker(hub.address) as worker:
        await worker.register()
        await worker.open_stream()
        await hub.linked("plain")
        session_id = await hub.wire.session()
        await worker.drop_stream()
        await worker.register()
        opening = asyncio.create_task(worker.open_stream())
        await worker.beat()
        await opening
        async with asyncio.timeout(10):
            assert (await hub.wire.run(session_id, echo()))[-1].HasField("result")


async def test_a_worker_by_others_that_can_be_dialled_is_dialled():
    async with (
        open_hub() as hub,
        memory_worker() as services,
        plain_worker(hub.address) as worker,
    ):
        await worker.register(grpc_address=services.address)
        await hub.linked("plain")
        session_id = await hub.wire.session()
        assert (await hub.wire.run(session_id, echo("dialled")))[-1].HasField("result")
        saved = await hub.wire.sessions.CheckpointSession(
            pb.CheckpointRequest(session_id=session_id)
        )
        assert saved.checkpoint_id
        assert not worker.frames


async def test_a_worker_whose_address_answers_nobody_is_served_over_its_stream():
    async with open_hub() as hub, memory_worker() as gone:
        address = gone.address
        await gone.server.stop(0)
        async with joined(hub, grpc_address=address) as worker:
            session_id = await hub.wire.session()
            assert session_id in worker.sessions


async def test_a_slow_reader_of_a_worker_without_credit_loses_lines_but_never_the_result():
    lines = 40

    async def run(worker: PlainWorker, assignment: lifecycle_pb.TaskAssignment) -> str:
        if assignment.request.run_python.code == "much":
            for _ in range(lines):
                await worker.say(assignment, "x" * 1_000_000)
        return "done"

    async with open_hub() as hub, joined(hub, run=run) as worker:
        session_id = await hub.wire.session()
        async with dial(hub.address) as slow:
            request = task_execution_pb2.TaskRequest(
                session_id=session_id, task_id="slow", typed_request=python("much")
            )
            call = slow.tasks.ExecuteTask(request)
            first = await anext(aiter(call))
            assert first.log.message
            for _ in range(20):  # others are not stopped
                assert (await hub.wire.run(session_id, python("x")))[-1].HasField("result")
            async with asyncio.timeout(10):
                while "slow" not in worker.ran or not worker._records["slow"].done():
                    await asyncio.sleep(0.01)
            rest = [message async for message in call]
        assert rest[-1].result.typed_response.run_python.stdout == "done"
        told = [m for m in rest if m.progress.stage == "output omitted"]
        logs = [m for m in rest if m.HasField("log")]
        assert len(logs) + 1 < lines
        assert len(told) == 1


async def test_with_tokens_a_worker_by_others_is_known_by_its_registration(tmp_path):
    token, entry = new_entry("plain", TokenKind.WORKER)
    write_tokens(tmp_path / "tokens", entry)
    async with open_hub(auth_tokens=str(tmp_path / "tokens")) as hub:
        for wrong in ("", "wrong", token.swapcase()):
            async with plain_worker(hub.address, token=wrong) as thief:
                with refused(grpc.StatusCode.UNAUTHENTICATED):
                    await thief.register()
        async with plain_worker(hub.address, "another", token=token) as thief:
            with refused(grpc.StatusCode.UNAUTHENTICATED):
                await thief.register()
        async with plain_worker(hub.address, token=token, names_itself=False) as worker:
            await worker.register()
            await worker.open_stream()
            await worker.beat()
            link = (await hub.linked("plain")).link
            async with plain_worker(hub.address) as thief:
                for guess in ("", "reg_guessed"):
                    thief.registration.session_id = guess
                    with refused(grpc.StatusCode.UNAUTHENTICATED):
                        await thief.beat()
                await thief.open_stream()
                error = await thief.stream_ended()
                assert error is not None
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert (await hub.linked("plain")).link is link
