"""The wire of a whole worker in its own process: nothing in memory, nothing in between."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp._proto.codegen.v1 import tools_pb2 as tools
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.testing.wire import RichError, Wire, dial
from codegen_mcp.testing.worker_process import WorkerProcess, worker_process

MIB = 1024 * 1024
WAIT_S = 20.0


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with worker_process(
        WORKER_ID="the-worker", MAX_SESSIONS="4", POOL_SIZE="1", REQUIRE_ISOLATION="process-bare"
    ) as started:
        yield started


async def test_a_session_says_who_holds_its_walls_up_and_what_it_uses(worker):
    async with dial(worker.address) as wire, Session(wire) as session_id:
        await wire.run(session_id, python("print(sum(range(10**6)))"))
        request = sessions_pb.SessionStatusRequest(session_id=session_id)
        status = await wire.sessions.GetSessionStatus(request)
        room = await wire.sessions.GetCapacity(sessions_pb.CapacityRequest())
        listed = await wire.sessions.ListSessions(sessions_pb.ListSessionsRequest())
    assert status.worker_id == "the-worker"
    assert status.state == common_pb2.SESSION_STATE_IDLE
    assert status.info.isolation["sandbox"]
    assert status.info.isolation.items() <= room.metadata.items()
    assert room.metadata["self_test"]
    assert status.info.usage.disk_bytes > 0
    assert len(status.recent_tasks) == 1
    assert room.total_sessions == 4
    assert session_id in {info.session_id for info in listed.sessions}


async def test_a_run_streams_its_output_and_ends_in_its_result(worker):
    code = "import sys; print('out ☃'); print('err', file=sys.stderr); sys.exit(3)"
    async with dial(worker.address) as wire, Session(wire) as session_id:
        *before, last = await wire.run(session_id, python(code, args=["a"]))
    logs = {
        source: b"".join(m.log.data for m in before if m.log.source == source)
        for source in ("stdout", "stderr")
    }
    assert logs == {"stdout": "out ☃\n".encode(), "stderr": b"err\n"}
    assert last.result.status == pb.TaskResult.STATUS_FAILURE
    assert last.result.metadata.exit_code == 3
    assert last.result.metadata.ended_by == common_pb2.ENDED_BY_EXIT
    assert last.result.metadata.stdout_bytes == len("out ☃\n".encode())
    assert last.result.typed_response.run_python.stdout == "out ☃\n"
    assert last.result.typed_response.run_python.stderr == "err\n"


async def test_no_message_is_above_four_mebibytes_whatever_is_printed(worker):
    code = (
        "import os\nfor _ in range(96): os.write(1, b'\\xff' * 65536); os.write(2, b'\\1' * 65536)"
    )
    async with dial(worker.address) as wire, Session(wire) as session_id:
        sizes, counts = [], Counter()
        request = pb.TaskRequest(session_id=session_id, typed_request=python(code))
        async for message in wire.tasks.ExecuteTask(request):
            sizes.append(message.ByteSize())
            counts[message.log.source] += len(message.log.data)
        last = message
    assert max(sizes) <= 4 * MIB
    assert (counts["stdout"], counts["stderr"]) == (6 * MIB, 6 * MIB)
    facts, answer = last.result.metadata, last.result.typed_response.run_python
    assert facts.stdout_bytes == facts.stderr_bytes == 6 * MIB
    assert len(answer.stdout) == 6 * MIB - facts.stdout_omitted_bytes
    assert len(answer.stderr) == 6 * MIB - facts.stderr_omitted_bytes


async def test_a_run_past_its_time_is_a_result_with_what_it_printed(worker):
    code = "import time; print('here', flush=True); time.sleep(60)"
    async with dial(worker.address) as wire, Session(wire) as session_id:
        *_, last = await wire.run(
            session_id, python(code), constraints=pb.ExecutionConstraints(timeout_seconds=1)
        )
    assert last.result.status == pb.TaskResult.STATUS_TIMEOUT
    assert last.result.metadata.ended_by == common_pb2.ENDED_BY_TIMEOUT
    assert last.result.metadata.remedy
    assert last.result.typed_response.run_python.timed_out
    assert last.result.typed_response.run_python.stdout == "here\n"


async def test_files_of_any_size_go_in_and_out(worker):
    data = random.Random(3).randbytes(12 * MIB + 5)
    digest = hashlib.sha256(data).hexdigest()
    async with dial(worker.address) as wire, Session(wire) as session_id:
        parts = [
            files_pb.UploadChunk(
                header=files_pb.UploadHeader(session_id=session_id, path="a/big", create_dirs=True)
            ),
            *(files_pb.UploadChunk(data=data[at : at + MIB]) for at in range(0, len(data), MIB)),
            files_pb.UploadChunk(end=files_pb.UploadEnd(size=len(data), sha256=digest)),
        ]
        summary = await wire.files.Upload(iter(parts))
        read = tools.ToolRequest(fs_read=tools.FsReadRequest(path="a/big"))
        (too_large,) = await wire.run(session_id, read)
        request = files_pb.DownloadRequest(session_id=session_id, path="a/big")
        *chunks, last = [part async for part in wire.files.Download(request)]
        torn = wire.files.Upload(iter(parts[:-1]))
        with pytest.raises(aio.AioRpcError) as caught:
            await torn
        listing = tools.ToolRequest(fs_list=tools.FsListRequest(recursive=True))
        (listed,) = await wire.run(session_id, listing)
    assert (summary.size, summary.sha256) == (len(data), digest)
    assert b"".join(chunk.data for chunk in chunks) == data
    assert (last.summary.size, last.summary.sha256) == (len(data), digest)
    assert too_large.error.code == "RESOURCE_EXHAUSTED"
    assert RichError(caught.value).info.reason == "UPLOAD_INCOMPLETE"
    files = [file.path for file in listed.result.typed_response.fs_list.files]
    assert files == ["a", "a/big"]


async def test_a_caller_that_detached_comes_back_for_the_rest(worker):
    code = "import sys\nprint('one', flush=True)\nprint(len(sys.stdin.read()))"
    async with dial(worker.address) as wire, Session(wire) as session_id:
        request = pb.TaskRequest(
            task_id="kept",
            session_id=session_id,
            typed_request=python(code, stdin=b"x" * 100),
            on_disconnect=pb.ON_DISCONNECT_DETACH,
            sequence=1,
        )
        stream = wire.tasks.ExecuteTask(request)
        async with asyncio.timeout(WAIT_S):
            first = await stream.read()
        stream.cancel()
        attach = pb.AttachTaskRequest(
            task_id="kept", session_id=session_id, stdout_offset=len(first.log.data)
        )
        *rest, last = [message async for message in wire.tasks.AttachTask(attach)]
        again = [message async for message in wire.tasks.ExecuteTask(request)]
    printed = first.log.data + b"".join(message.log.data for message in rest)
    assert printed == b"one\n100\n"
    assert last.result.status == pb.TaskResult.STATUS_SUCCESS
    assert again[-1].result.metadata == last.result.metadata


async def test_a_caller_that_leaves_ends_its_run(worker):
    async with dial(worker.address) as wire, Session(wire) as session_id:
        code = "import time; print('up', flush=True); time.sleep(60)"
        stream = wire.tasks.ExecuteTask(
            pb.TaskRequest(task_id="t", session_id=session_id, typed_request=python(code))
        )
        ask = pb.StatusRequest(task_id="t", session_id=session_id)
        async with asyncio.timeout(WAIT_S):
            await stream.read()
            during = await wire.tasks.GetTaskStatus(ask)
            stream.cancel()
            while (after := await wire.tasks.GetTaskStatus(ask)).state != "finished":
                await asyncio.sleep(0.02)
    assert during.state == "running"
    assert after.status == pb.TaskResult.STATUS_CANCELLED
    assert after.ended_by == common_pb2.ENDED_BY_CANCELLED


async def test_cancel_ends_a_run_and_says_what_it_met(worker):
    async with dial(worker.address) as wire, Session(wire) as session_id:
        code = "import time; print('up', flush=True); time.sleep(60)"
        stream = wire.tasks.ExecuteTask(
            pb.TaskRequest(task_id="t", session_id=session_id, typed_request=python(code))
        )
        cancel = pb.CancelRequest(task_id="t", session_id=session_id)
        async with asyncio.timeout(WAIT_S):
            await stream.read()
            did = await wire.tasks.CancelTask(cancel)
            last = await last_of(stream)
            late = await wire.tasks.CancelTask(cancel)
    assert (did.cancelled, did.state) == (True, "running")
    assert (late.cancelled, late.state) == (False, "finished")
    assert last.result.status == pb.TaskResult.STATUS_CANCELLED


async def test_duplicates_and_old_sequences_are_told_apart(worker):
    async with dial(worker.address) as wire, Session(wire) as session_id:
        await wire.run(session_id, python("print(1)"), task_id="a", sequence=5)
        cases = {
            ("a", 5, "print(2)"): "ALREADY_EXISTS",
            ("b", 5, "print(1)"): "ALREADY_EXISTS",
            ("c", 4, "print(1)"): "FAILED_PRECONDITION",
        }
        for (task_id, sequence, code), status in cases.items():
            with pytest.raises(aio.AioRpcError) as caught:
                await wire.run(session_id, python(code), task_id=task_id, sequence=sequence)
            assert caught.value.code().name == status
    assert RichError(caught.value).info.reason == "OUTCOME_UNKNOWN"


@pytest.mark.parametrize(
    ("tool", "code", "reason"),
    [
        (
            tools.ToolRequest(fs_read=tools.FsReadRequest(path="../x")),
            "INVALID_ARGUMENT",
            "PATH_ESCAPE",
        ),
        (tools.ToolRequest(fs_read=tools.FsReadRequest(path="none")), "NOT_FOUND", "NOT_FOUND"),
        (
            tools.ToolRequest(run_python=tools.RunPythonRequest(code="1", timeout_seconds=99999)),
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
        ),
        (
            tools.ToolRequest(
                pkg_install=tools.PkgInstallRequest(
                    packages=["x"], index_url="https://evil.example"
                )
            ),
            "PERMISSION_DENIED",
            "INDEX_NOT_ALLOWED",
        ),
    ],
)
async def test_a_tool_s_own_trouble_is_the_last_message(worker, tool, code, reason):
    async with dial(worker.address) as wire, Session(wire) as session_id:
        *_, last = await wire.run(session_id, tool)
    assert last.error.code == code, last
    assert json.loads(last.error.details)["reason"] == reason


async def test_unknown_sessions_tools_and_workers_are_refused(worker):
    async with dial(worker.address) as wire, Session(wire) as session_id:
        unknown = tools.ToolRequest(call=tools.ToolCall(name="gpu.burn"))
        calls = {
            "NOT_FOUND": wire.run("ses_none", python("1")),
            "UNIMPLEMENTED": wire.run(session_id, unknown),
            "INVALID_ARGUMENT": wire.run(session_id, tools.ToolRequest()),
            "FAILED_PRECONDITION": wire.session(worker_id="other"),
        }
        for code, call in calls.items():
            with pytest.raises(aio.AioRpcError) as caught:
                await call
            assert caught.value.code().name == code
            assert RichError(caught.value).info.reason


async def test_a_full_worker_says_so_and_a_burst_is_answered_to_the_last(worker):
    async with dial(worker.address) as wire:
        made = [await wire.session() for _ in range(4)]
        with pytest.raises(aio.AioRpcError) as caught:
            await wire.session()
        request = sessions_pb.SessionStatusRequest(session_id=made[0])
        answers = await asyncio.gather(
            *(wire.sessions.GetSessionStatus(request) for _ in range(2000)),
            return_exceptions=True,
        )
        for session_id in made:
            await wire.sessions.DestroySession(
                sessions_pb.DestroySessionRequest(session_id=session_id, force=True)
            )
    error = RichError(caught.value)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.info.reason == "FULL"
    assert error.has_retry
    codes = Counter(a.code().name if isinstance(a, aio.AioRpcError) else "OK" for a in answers)
    assert codes == {"OK": 2000}


async def test_the_first_signal_drains_and_the_worker_ends_well():
    with worker_process(REQUIRE_ISOLATION="process-bare", POOL_SIZE="0") as worker:
        async with dial(worker.address) as wire:
            session_id = await wire.session()
            code = "import time; print('up', flush=True); time.sleep(1.5); print('done')"
            request = pb.TaskRequest(session_id=session_id, typed_request=python(code))
            stream = wire.tasks.ExecuteTask(request)
            watch = wire.health.Watch(health_pb2.HealthCheckRequest())
            async with asyncio.timeout(WAIT_S):
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
                await stream.read()
                ended = asyncio.ensure_future(asyncio.to_thread(worker.stop))
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                with pytest.raises(aio.AioRpcError) as caught:
                    await wire.session()
                last = await last_of(stream)
                code_of_exit = await ended
    assert RichError(caught.value).info.reason == "DRAINING"
    assert last.result.typed_response.run_python.stdout == "up\ndone\n"
    assert code_of_exit == 0


class Session:
    """A session that is destroyed at the end of the block."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._id = ""

    async def __aenter__(self) -> str:
        self._id = await self._wire.session()
        return self._id

    async def __aexit__(self, *_: object) -> None:
        await self._wire.sessions.DestroySession(
            sessions_pb.DestroySessionRequest(session_id=self._id, force=True)
        )


async def last_of(stream: aio.UnaryStreamCall) -> pb.TaskResponse:
    last = None
    while (message := await stream.read()) is not aio.EOF:
        last = message
    assert last is not None
    return last


def python(code: str, **fields: object) -> tools.ToolRequest:
    return tools.ToolRequest(run_python=tools.RunPythonRequest(code=code, **fields))
