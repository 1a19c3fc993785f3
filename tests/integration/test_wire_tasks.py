from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp._proto.codegen.v1 import tools_pb2 as tools
from codegen_mcp.core.task import EndedBy, Outcome, Stream
from codegen_mcp.testing.wire import RichError, exited, memory_worker, scripted

WAIT_S = 5.0


async def test_echo_comes_back_with_its_metadata():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        request = tools.ToolRequest(echo=tools.EchoRequest(message="hi ☃", metadata={"k": "v"}))
        (only,) = await worker.wire.run(session_id, request, task_id="t-1")
    assert only.task_id == "t-1"
    assert only.result.status == pb.TaskResult.STATUS_SUCCESS
    assert only.result.typed_response.echo.message == "hi ☃"
    assert dict(only.result.typed_response.echo.metadata) == {"k": "v"}
    assert only.result.metadata.ended_by == common_pb2.ENDED_BY_EXIT
    assert only.result.metadata.start_time_ms > 0


async def test_a_task_without_an_id_is_given_one():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        (only,) = await worker.wire.run(session_id, echo("x"))
        listed = await worker.wire.tasks.ListTasks(pb.ListTasksRequest(session_id=session_id))
    assert only.task_id.startswith("task_")
    assert [task.task_id for task in listed.tasks] == [only.task_id]


async def test_files_travel_exactly_as_text_and_as_bytes():
    binary = bytes(range(256))
    async with memory_worker() as worker:
        session_id = await worker.wire.session()

        async def answer(request):
            return (await worker.wire.run(session_id, request))[-1].result.typed_response

        wrote = await answer(
            tools.ToolRequest(
                fs_write=tools.FsWriteRequest(path="d/a.txt", contents="é", create_dirs=True)
            )
        )
        await answer(tools.ToolRequest(fs_write=tools.FsWriteRequest(path="b.bin", data=binary)))
        text = await answer(tools.ToolRequest(fs_read=tools.FsReadRequest(path="d/a.txt")))
        raw = await answer(tools.ToolRequest(fs_read=tools.FsReadRequest(path="b.bin")))
        part = await answer(
            tools.ToolRequest(fs_read=tools.FsReadRequest(path="b.bin", offset=65, length=3))
        )
        listed = await answer(tools.ToolRequest(fs_list=tools.FsListRequest(recursive=True)))
    assert wrote.fs_write.bytes_written == 2
    assert len(wrote.fs_write.sha256) == 64
    assert (text.fs_read.contents, text.fs_read.encoding) == ("é", "utf-8")
    assert (raw.fs_read.data, raw.fs_read.encoding) == (binary, "base64")
    assert (part.fs_read.contents, part.fs_read.size_bytes) == ("ABC", 256)
    assert [(file.path, file.is_directory) for file in listed.fs_list.files] == [
        ("b.bin", False),
        ("d", True),
        ("d/a.txt", False),
    ]
    assert listed.fs_list.files[0].path_bytes == b"b.bin"


async def test_any_tool_can_be_called_by_name_with_json():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        wrote = await worker.wire.run(
            session_id, call("fs.write", path="a", data="AP8=", mode=0o600)
        )
        stat = await worker.wire.run(session_id, call("fs.stat", path="a"))
        listing = await worker.wire.tasks.ListTools(pb.ListToolsRequest())
    result = json.loads(wrote[-1].result.typed_response.call.result_json)
    assert result["bytes_written"] == 2
    assert json.loads(stat[-1].result.typed_response.call.result_json)["size_bytes"] == 2
    described = {tool.name: tool for tool in listing.tools}
    assert "path" in json.loads(described["fs.stat"].arguments_schema_json)["properties"]
    assert json.loads(described["fs.stat"].result_schema_json)["properties"]
    assert described["fs.stat"].read_only
    assert described["run.python"].runs_code


@pytest.mark.parametrize(
    ("request_fields", "code", "reason"),
    [
        ({"typed_request": tools.ToolRequest()}, "INVALID_ARGUMENT", "NO_TOOL"),
        ({}, "INVALID_ARGUMENT", "NO_TOOL"),
        (
            {"typed_request": tools.ToolRequest(call=tools.ToolCall())},
            "INVALID_ARGUMENT",
            "NO_TOOL",
        ),
        (
            {"typed_request": tools.ToolRequest(call=tools.ToolCall(name="gpu.burn"))},
            "UNIMPLEMENTED",
            "UNKNOWN_TOOL",
        ),
        ({"session_id": "ses_none"}, "NOT_FOUND", "SESSION_NOT_FOUND"),
        ({"task_id": "a b"}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"on_disconnect": 77}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        (
            {"constraints": pb.ExecutionConstraints(timeout_seconds=-1)},
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
        ),
        (
            {"constraints": pb.ExecutionConstraints(allow_network=True)},
            "INVALID_ARGUMENT",
            "FIELD_NOT_SUPPORTED",
        ),
        (
            {"constraints": pb.ExecutionConstraints(allowed_paths=["a"])},
            "INVALID_ARGUMENT",
            "FIELD_NOT_SUPPORTED",
        ),
        ({"context": pb.TaskContext(secrets=["s"])}, "INVALID_ARGUMENT", "FIELD_NOT_SUPPORTED"),
        (
            {"context": pb.TaskContext(user_id="u" * 300)},
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
        ),
    ],
)
async def test_what_is_wrong_with_the_call_is_the_status_of_the_call(request_fields, code, reason):
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        fields = {"session_id": session_id, "typed_request": echo("x"), **request_fields}
        if request_fields == {}:
            del fields["typed_request"]
        error = await failed(worker.wire.tasks.ExecuteTask(pb.TaskRequest(**fields)))
        listed = await worker.wire.tasks.ListTasks(pb.ListTasksRequest(session_id=session_id))
    assert (error.code.name, error.info.reason) == (code, reason)
    assert not listed.tasks


@pytest.mark.parametrize(
    ("tool", "code", "reason"),
    [
        (
            tools.ToolRequest(fs_read=tools.FsReadRequest(path="/etc/passwd")),
            "INVALID_ARGUMENT",
            "PATH_ESCAPE",
        ),
        (tools.ToolRequest(fs_read=tools.FsReadRequest(path="none")), "NOT_FOUND", "NOT_FOUND"),
        (tools.ToolRequest(fs_read=tools.FsReadRequest()), "INVALID_ARGUMENT", "INVALID_REQUEST"),
        (
            tools.ToolRequest(call=tools.ToolCall(name="fs.stat", arguments_json="{]")),
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
        ),
        (
            tools.ToolRequest(run_python=tools.RunPythonRequest(code="1", timeout_seconds=-1)),
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
        ),
        (
            tools.ToolRequest(run_python=tools.RunPythonRequest(code="1")),
            "UNAVAILABLE",
            "SANDBOX_UNAVAILABLE",
        ),
    ],
)
async def test_what_is_wrong_with_the_tool_s_work_is_the_last_message(tool, code, reason):
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        (only,) = await worker.wire.run(session_id, tool)
    assert only.error.code == code
    assert json.loads(only.error.details)["reason"] == reason
    assert only.error.message
    assert only.error.retriable is (code == "UNAVAILABLE")


async def test_output_is_exact_and_no_character_is_torn():
    snow = "☃é".encode()

    async def script(sink):
        for at in range(len(snow)):
            await sink.write(Stream.STDOUT, snow[at : at + 1])
            await sink.write(Stream.STDERR, b"e")
        await sink.write(Stream.STDOUT, b"\xff\xe2\x98")
        return exited(3)

    async with memory_worker(runner=scripted(main=script)) as worker:
        session_id = await worker.wire.session()
        *before, last = await worker.wire.run(session_id, python("main"))
    out = [m.log for m in before if m.log.source == "stdout"]
    err = [m.log for m in before if m.log.source == "stderr"]
    assert b"".join(entry.data for entry in out) == snow + b"\xff\xe2\x98"
    assert "".join(entry.message for entry in out) == "☃é��"
    assert [entry.offset for entry in err] == list(range(len(snow)))
    assert {entry.level for entry in out} == {pb.LogEntry.LEVEL_INFO}
    assert {entry.level for entry in err} == {pb.LogEntry.LEVEL_WARN}
    assert all(entry.timestamp_ms for entry in out)
    assert last.result.status == pb.TaskResult.STATUS_FAILURE
    assert last.result.metadata.exit_code == 3
    assert last.result.typed_response.run_python.exit_code == 3


async def test_a_long_piece_of_output_is_cut_into_pieces():
    async def script(sink):
        await sink.write(Stream.STDOUT, b"x" * 200_000)
        return exited()

    async with memory_worker(runner=scripted(main=script)) as worker:
        session_id = await worker.wire.session()
        *before, _ = await worker.wire.run(session_id, python("main"))
    assert [len(message.log.data) for message in before] == [65536, 65536, 65536, 3392]
    assert [message.log.offset for message in before] == [0, 65536, 131072, 196608]


@pytest.mark.parametrize(
    ("ended_by", "status"),
    [
        (EndedBy.TIMEOUT, pb.TaskResult.STATUS_TIMEOUT),
        (EndedBy.MEMORY, pb.TaskResult.STATUS_FAILURE),
        (EndedBy.OUTPUT, pb.TaskResult.STATUS_FAILURE),
    ],
)
async def test_a_run_that_met_a_limit_is_a_result(ended_by, status):
    async def script(sink):
        return Outcome(ended_by=ended_by, exit_code=137)

    async with memory_worker(runner=scripted(main=script)) as worker:
        session_id = await worker.wire.session()
        (last,) = await worker.wire.run(session_id, python("main"))
    assert last.result.status == status
    assert last.result.metadata.ended_by == ended_by.value
    assert last.result.typed_response.run_python.timed_out is (ended_by is EndedBy.TIMEOUT)


async def test_status_and_cancel_follow_a_task_through_its_life():
    started = asyncio.Event()

    async def script(sink):
        await sink.write(Stream.STDOUT, b"on it")
        started.set()
        await asyncio.Event().wait()
        return exited()

    async with memory_worker(runner=scripted(main=script)) as worker:
        session_id = await worker.wire.session()
        stream = asyncio.ensure_future(
            worker.wire.run(session_id, python("main"), task_id="t", sequence=7)
        )
        async with asyncio.timeout(WAIT_S):
            await started.wait()
        ask = pb.StatusRequest(task_id="t", session_id=session_id)
        cancel = pb.CancelRequest(task_id="t", session_id=session_id, reason="enough")
        during = await worker.wire.tasks.GetTaskStatus(ask)
        first = await worker.wire.tasks.CancelTask(cancel)
        messages = await stream
        second = await worker.wire.tasks.CancelTask(cancel)
        after = await worker.wire.tasks.GetTaskStatus(ask)
    assert (during.state, during.status) == ("running", pb.TaskResult.STATUS_UNSPECIFIED)
    assert (during.tool, during.session_id, during.stdout_bytes) == ("run.python", session_id, 5)
    assert (first.cancelled, first.state) == (True, "running")
    assert (second.cancelled, second.state) == (False, "finished")
    assert messages[-1].result.status == pb.TaskResult.STATUS_CANCELLED
    assert messages[-1].result.metadata.ended_by == common_pb2.ENDED_BY_CANCELLED
    assert not messages[-1].result.HasField("typed_response")
    assert (after.state, after.status) == ("finished", pb.TaskResult.STATUS_CANCELLED)
    assert after.ended_by == common_pb2.ENDED_BY_CANCELLED


async def test_a_caller_that_leaves_cancels_its_task_unless_it_detaches():
    ends: dict[str, asyncio.Event] = {name: asyncio.Event() for name in ("dies", "lives")}
    release = asyncio.Event()

    async def dies(sink):
        await sink.write(Stream.STDOUT, b"x")
        try:
            await asyncio.Event().wait()
        finally:
            ends["dies"].set()
        return exited()

    async def lives(sink):
        await sink.write(Stream.STDOUT, b"before ")
        await release.wait()
        await sink.write(Stream.STDOUT, b"after")
        return exited()

    async with memory_worker(runner=scripted(dies=dies, lives=lives)) as worker:
        session_id = await worker.wire.session()
        await leave_after_first(
            worker.wire.tasks.ExecuteTask(
                pb.TaskRequest(session_id=session_id, typed_request=python("dies"))
            )
        )
        async with asyncio.timeout(WAIT_S):
            await ends["dies"].wait()
        await leave_after_first(
            worker.wire.tasks.ExecuteTask(
                pb.TaskRequest(
                    task_id="kept",
                    session_id=session_id,
                    typed_request=python("lives"),
                    on_disconnect=pb.ON_DISCONNECT_DETACH,
                )
            )
        )
        release.set()
        joined = worker.wire.tasks.AttachTask(
            pb.AttachTaskRequest(task_id="kept", session_id=session_id, stdout_offset=3)
        )
        messages = [message async for message in joined]
    *logs, last = messages
    assert b"".join(message.log.data for message in logs) == b"ore after"
    assert logs[0].log.offset == 3
    assert last.result.status == pb.TaskResult.STATUS_SUCCESS
    assert last.result.typed_response.run_python.stdout == "before after"


async def test_a_call_past_its_deadline_ends_so_and_the_task_is_cancelled():
    ended = asyncio.Event()

    async def script(sink):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return exited()

    async with memory_worker(runner=scripted(main=script)) as worker:
        session_id = await worker.wire.session()
        request = pb.TaskRequest(session_id=session_id, typed_request=python("main"))
        error = await failed(worker.wire.tasks.ExecuteTask(request, timeout=0.2))
        async with asyncio.timeout(WAIT_S):
            await ended.wait()
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_repeated_request_is_answered_and_does_not_run_again():
    runs = 0

    async def script(sink):
        nonlocal runs
        runs += 1
        await sink.write(Stream.STDOUT, b"once")
        return exited()

    async with memory_worker(runner=scripted(main=script)) as worker:
        session_id = await worker.wire.session()

        async def ask(tool, **fields):
            return await worker.wire.run(session_id, tool, **fields)

        first = await ask(python("main"), task_id="a", sequence=5)
        again = await ask(python("main"), task_id="a", sequence=5)
        request = pb.TaskRequest(session_id=session_id, typed_request=python("main"))
        other = pb.TaskRequest(task_id="b", sequence=5)
        other.MergeFrom(request)
        past = pb.TaskRequest(task_id="c", sequence=4)
        past.MergeFrom(request)
        taken = await failed(worker.wire.tasks.ExecuteTask(other))
        unknown = await failed(worker.wire.tasks.ExecuteTask(past))
    assert first == again
    assert runs == 1
    assert taken.code is grpc.StatusCode.ALREADY_EXISTS
    assert unknown.code is grpc.StatusCode.FAILED_PRECONDITION
    assert unknown.info.reason == "OUTCOME_UNKNOWN"


@pytest.mark.parametrize("rpc", ["GetTaskStatus", "CancelTask", "AttachTask", "ListTasks"])
async def test_an_unknown_task_or_session_is_not_found(rpc):
    requests = {
        "GetTaskStatus": pb.StatusRequest,
        "CancelTask": pb.CancelRequest,
        "AttachTask": pb.AttachTaskRequest,
        "ListTasks": pb.ListTasksRequest,
    }
    async with memory_worker() as worker:
        session_id = "ses_none" if rpc == "ListTasks" else await worker.wire.session()
        request = requests[rpc](session_id=session_id)
        if rpc != "ListTasks":
            request.task_id = "none"
        error = await failed(getattr(worker.wire.tasks, rpc)(request))
    assert error.code is grpc.StatusCode.NOT_FOUND


async def test_unknown_fields_are_tolerated():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        request = pb.TaskRequest(session_id=session_id, typed_request=echo("x"))
        unknown = b"\xfa\x3e\x03abc"  # field 1007, three bytes
        method = worker.wire.channel.unary_stream(
            "/codegen.v1.TaskExecution/ExecuteTask",
            response_deserializer=pb.TaskResponse.FromString,
        )
        messages = [message async for message in method(request.SerializeToString() + unknown)]
    assert messages[-1].result.typed_response.echo.message == "x"


def echo(text: str) -> tools.ToolRequest:
    return tools.ToolRequest(echo=tools.EchoRequest(message=text))


def python(code: str) -> tools.ToolRequest:
    return tools.ToolRequest(run_python=tools.RunPythonRequest(code=code))


def call(tool: str, **arguments: object) -> tools.ToolRequest:
    return tools.ToolRequest(call=tools.ToolCall(name=tool, arguments_json=json.dumps(arguments)))


async def leave_after_first(stream: aio.UnaryStreamCall) -> None:
    async with asyncio.timeout(WAIT_S):
        await stream.read()
    stream.cancel()


async def failed(stream: aio.UnaryStreamCall | aio.UnaryUnaryCall) -> RichError:
    with pytest.raises(aio.AioRpcError) as caught:
        await (read_all(stream) if isinstance(stream, aio.UnaryStreamCall) else stream)
    return RichError(caught.value)


async def read_all(stream: aio.UnaryStreamCall) -> None:
    async for _ in stream:
        pass
