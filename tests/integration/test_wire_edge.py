from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp._proto.codegen.v1 import tools_pb2 as tools
from codegen_mcp.core import errors
from codegen_mcp.server.app import SERVICES, WorkerServer
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.testing.memory_engine import MemoryEngine
from codegen_mcp.testing.wire import RichError, dial, memory_worker
from codegen_mcp.tools.base import ToolContext, ToolModel, ToolResult, ToolSpec

MIB = 1024 * 1024
WAIT_S = 5.0
BUF = Path(sys.executable).parent / "buf"


class Size(ToolModel):
    size: int


class Text(ToolModel):
    text: str


class Big:
    """Answers with as much as is asked for; -1 is a fault of ours."""

    spec = ToolSpec(name="big", title="", description="", arguments=Size, result=Text)

    async def run(self, ctx: ToolContext, arguments: Size) -> ToolResult:
        if arguments.size < 0:
            raise RuntimeError("password=hunter2")
        return ToolResult(Text(text="x" * arguments.size))


class Slow(Big):
    """Answers when it is released."""

    def __init__(self) -> None:
        self.started = 0
        self.release = asyncio.Event()

    async def run(self, ctx: ToolContext, arguments: Size) -> ToolResult:
        self.started += 1
        await self.release.wait()
        return await super().run(ctx, arguments)


async def test_a_burst_of_two_thousand_calls_is_answered_to_the_last():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        request = sessions_pb.SessionStatusRequest(session_id=session_id)
        calls = [worker.wire.sessions.GetSessionStatus(request) for _ in range(2000)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    codes = Counter(a.code().name if isinstance(a, aio.AioRpcError) else "OK" for a in answers)
    assert codes == {"OK": 2000}


async def test_calls_beyond_the_bound_are_refused_in_words_and_none_is_dropped():
    slow = Slow()
    async with memory_worker(tools=[slow], max_in_flight=3) as worker:
        session_id = await worker.wire.session()
        held = [asyncio.ensure_future(worker.wire.run(session_id, big(1))) for _ in range(3)]
        async with asyncio.timeout(WAIT_S):
            while slow.started < 3:
                await asyncio.sleep(0.01)
        request = sessions_pb.SessionStatusRequest(session_id=session_id)
        calls = [worker.wire.sessions.GetSessionStatus(request) for _ in range(1000)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        alive = await worker.wire.health.Check(health_pb2.HealthCheckRequest())
        slow.release.set()
        finished = [messages[-1] for messages in await asyncio.gather(*held)]
        later = await worker.wire.sessions.GetSessionStatus(request)
    errors = [RichError(error) for error in answers if isinstance(error, aio.AioRpcError)]
    assert len(errors) == 1000
    assert {error.code for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert {error.info.reason for error in errors} == {"TOO_MANY_CALLS"}
    assert all(error.retry.retry_delay.nanos for error in errors)
    assert alive.status == health_pb2.HealthCheckResponse.SERVING
    assert all(message.HasField("result") for message in finished)
    assert later.session_id == session_id


async def test_a_request_above_four_mebibytes_is_refused_and_the_next_one_served():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()

        async def write(size: int) -> pb.TaskResponse:
            tool = tools.ToolRequest(fs_write=tools.FsWriteRequest(path="f", data=b"x" * size))
            return (await worker.wire.run(session_id, tool))[-1]

        with pytest.raises(aio.AioRpcError) as caught:
            await write(4 * MIB)
        fits = await write(4 * MIB - 1024)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (caught.value.details() or "")
    assert fits.result.typed_response.fs_write.bytes_written == 4 * MIB - 1024


async def test_an_answer_above_four_mebibytes_becomes_an_error_that_says_what_to_do():
    async with memory_worker(tools=[Big()]) as worker:
        session_id = await worker.wire.session()

        async def ask(size: int) -> pb.TaskResponse:
            return (await worker.wire.run(session_id, big(size)))[-1]

        small = await ask(3 * MIB)
        large = await ask(4 * MIB)
    assert small.HasField("result")
    assert large.error.code == "RESOURCE_EXHAUSTED"
    assert json.loads(large.error.details)["reason"] == "LIMIT_EXCEEDED"
    assert "Download" in large.error.message


async def test_a_fault_of_ours_is_told_by_an_id_that_only_the_log_explains():
    with capture_logs() as logs:
        async with memory_worker(tools=[Big()]) as worker:
            session_id = await worker.wire.session()
            (answer,) = await worker.wire.run(session_id, big(-1))
            worker.engine.sessions.capacity = None  # type: ignore[assignment,method-assign]
            with pytest.raises(aio.AioRpcError) as caught:
                await worker.wire.sessions.GetCapacity(sessions_pb.CapacityRequest())
    error = RichError(caught.value)
    details = json.loads(answer.error.details)
    logged = {entry["error_id"]: entry for entry in logs if "error_id" in entry}
    assert answer.error.code == "INTERNAL"
    assert error.code is grpc.StatusCode.INTERNAL
    assert "hunter2" not in answer.error.message + answer.error.details
    assert details["error_id"] in answer.error.message
    assert set(logged) == {details["error_id"], error.info.metadata["error_id"]}
    assert "hunter2" in str(logged[details["error_id"]]["exc_info"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Conflict("x"), "ABORTED"),
        (errors.Corrupt("x"), "DATA_LOSS"),
        (errors.Cancelled("x"), "CANCELLED"),
        (errors.StoreUnavailable("x"), "UNAVAILABLE"),
        (errors.SandboxUnavailable("x"), "UNAVAILABLE"),
        (errors.LimitExceeded("x"), "RESOURCE_EXHAUSTED"),
        (errors.AlreadyExists("x"), "ALREADY_EXISTS"),
        (errors.WrongState("x"), "FAILED_PRECONDITION"),
        (errors.Forbidden("x"), "PERMISSION_DENIED"),
        (errors.Unauthenticated("x"), "UNAUTHENTICATED"),
        (errors.WorkerError("secret"), "INTERNAL"),
    ],
)
async def test_an_error_of_the_engine_has_its_status_and_reason(error, code):
    async with memory_worker() as worker:

        def refuse(session_id: str) -> None:
            raise error

        worker.engine.sessions.get = refuse  # type: ignore[assignment,method-assign]
        with pytest.raises(aio.AioRpcError) as caught:
            await worker.wire.sessions.GetSessionStatus(sessions_pb.SessionStatusRequest())
    told = RichError(caught.value)
    assert told.code.name == code
    assert told.info.reason == error.reason
    assert "secret" not in told.message


async def test_long_messages_still_fit_into_trailers():
    async with memory_worker() as worker:
        request = sessions_pb.SessionStatusRequest(session_id="☃" * 100_000)
        with pytest.raises(aio.AioRpcError) as caught:
            await worker.wire.sessions.GetSessionStatus(request)
        call = pb.TaskRequest(
            session_id=await worker.wire.session(),
            typed_request=tools.ToolRequest(call=tools.ToolCall(name="☃" * 100_000)),
        )
        with pytest.raises(aio.AioRpcError) as unknown:
            async for _ in worker.wire.tasks.ExecuteTask(call):
                pass
    assert RichError(caught.value).info.reason == "SESSION_NOT_FOUND"
    assert RichError(unknown.value).info.reason == "UNKNOWN_TOOL"


async def test_a_request_id_is_taken_when_sane_and_made_when_not():
    async with memory_worker() as worker:
        request = sessions_pb.CapacityRequest()

        async def ask(value: str) -> str:
            call = worker.wire.sessions.GetCapacity(request, metadata=(("x-request-id", value),))
            await call
            trailers = {str(k): str(v) for k, v in await call.trailing_metadata()}
            return trailers["x-request-id"]

        assert await ask("abc-123") == "abc-123"
        assert (await ask("no spaces please")).startswith("req_")
        assert (await ask("x" * 129)).startswith("req_")
        with pytest.raises(aio.AioRpcError) as caught:
            await worker.wire.sessions.GetSessionStatus(
                sessions_pb.SessionStatusRequest(), metadata=(("x-request-id", "mine"),)
            )
    assert RichError(caught.value).request_id == "mine"
    assert RichError(caught.value).request.request_id == "mine"


async def test_health_is_told_for_the_whole_and_each_service_and_turns_at_the_drain():
    async with memory_worker() as worker:
        names = ["", *SERVICES]

        async def ask(name: str) -> int:
            request = health_pb2.HealthCheckRequest(service=name)
            return (await worker.wire.health.Check(request)).status

        assert {await ask(name) for name in names} == {health_pb2.HealthCheckResponse.SERVING}
        watch = worker.wire.health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
        async with asyncio.timeout(WAIT_S):
            first = await watch.read()
        await worker.server.drain()
        async with asyncio.timeout(WAIT_S):
            second = await watch.read()
        assert {await ask(name) for name in names} == {health_pb2.HealthCheckResponse.NOT_SERVING}
        watch.cancel()
    assert first.status == health_pb2.HealthCheckResponse.SERVING
    assert second.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_draining_worker_finishes_what_runs_and_takes_nothing_new():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        await worker.server.drain()
        assert not worker.server.serving
        refusals = [
            worker.wire.session(),
            worker.wire.run(session_id, tools.ToolRequest(echo=tools.EchoRequest())),
            worker.wire.files.Upload(iter(())),
        ]
        for call in refusals:
            with pytest.raises(aio.AioRpcError) as caught:
                await call
            error = RichError(caught.value)
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert error.info.reason == "DRAINING"
            assert error.has_retry
        status = await worker.wire.sessions.GetSessionStatus(
            sessions_pb.SessionStatusRequest(session_id=session_id)
        )
    assert status.session_id == session_id


async def test_a_stop_waits_for_calls_under_way():
    slow = Slow()
    async with memory_worker(tools=[slow]) as worker:
        session_id = await worker.wire.session()
        running = asyncio.ensure_future(worker.wire.run(session_id, big(4)))
        async with asyncio.timeout(WAIT_S):
            while not slow.started:
                await asyncio.sleep(0.01)
        stopping = asyncio.ensure_future(worker.server.stop(WAIT_S))
        while worker.server.serving:
            await asyncio.sleep(0.01)
        slow.release.set()
        async with asyncio.timeout(WAIT_S):
            (answer,) = await running
            await stopping
    assert json.loads(answer.result.typed_response.call.result_json) == {"text": "xxxx"}


async def test_a_taken_port_is_said_so_and_never_shared():
    async with MemoryEngine([]) as engine, memory_worker() as worker:
        config = ServerConfig(worker_id="w", port=worker.server.port)
        with pytest.raises(OSError, match="the port is taken"):
            async with WorkerServer(engine.sessions, engine.tasks, config):
                pass


async def test_a_unix_socket_serves_too(tmp_path):
    path = f"unix:{tmp_path}/worker.sock"
    async with (
        MemoryEngine([]) as engine,
        WorkerServer(engine.sessions, engine.tasks, ServerConfig(worker_id="w", host=path)),
        dial(path) as wire,
    ):
        assert await wire.session()


async def test_an_unknown_method_is_unimplemented():
    async with memory_worker() as worker:
        method = worker.wire.channel.unary_unary("/codegen.v1.SessionManagement/Nothing")
        with pytest.raises(aio.AioRpcError) as caught:
            await method(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_buf_curl_calls_a_worker_by_reflection_alone():
    async with memory_worker() as worker:
        url = f"http://{worker.address}/codegen.v1.SessionManagement"
        arguments = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
        made = await curl(*arguments, "--data", '{"workspaceId": "ws"}', f"{url}/CreateSession")
        room = await curl(*arguments, f"{url}/GetCapacity")
        listed = await curl(*arguments, "--list-methods", f"http://{worker.address}")
    assert json.loads(made)["sessionId"].startswith("ses_")
    assert json.loads(room)["activeSessions"] == 1
    for name in ("codegen.v1.WorkspaceFiles/Upload", "grpc.health.v1.Health/Check"):
        assert name in listed


def big(size: int) -> tools.ToolRequest:
    arguments = json.dumps({"size": size})
    return tools.ToolRequest(call=tools.ToolCall(name="big", arguments_json=arguments))


async def curl(*arguments: str | Path) -> str:
    done = await asyncio.to_thread(
        subprocess.run, arguments, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
