"""The link to the worker of the same process behaves as one over the network does."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sm
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as te
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files
from codegen_mcp.bootstrap import Worker
from codegen_mcp.coordinator.base import WorkerLink
from codegen_mcp.coordinator.dialled_link import DialledLink
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.local_link import LocalLink
from codegen_mcp.coordinator.remote_errors import LinkLost, RemoteInvalidRequest, RemoteNotFound
from codegen_mcp.core.errors import NotImplementedYet
from codegen_mcp.testing.worker import in_process_worker

CREATE = "SessionManagement/CreateSession"
EXECUTE = "TaskExecution/ExecuteTask"
SHA256 = hashlib.sha256(b"x" * 2_000_000).hexdigest()
OWNER = Owner(worker_id="w", incarnation=1)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[Worker]:
    async with in_process_worker(max_sessions=32) as worker:
        yield worker


@pytest_asyncio.fixture(params=["local", "dialled"], loop_scope="module")
async def link(request: pytest.FixtureRequest, worker: Worker) -> AsyncIterator[WorkerLink]:
    services = worker.server.local
    assert services is not None
    made: WorkerLink = (
        LocalLink(OWNER, services)
        if request.param == "local"
        else DialledLink(OWNER, worker.address)
    )
    yield made
    await made.close()


async def session(link: WorkerLink) -> str:
    made = await link.unary(CREATE, sm.CreateSessionRequest())
    assert isinstance(made, sm.CreateSessionResponse)
    return made.session_id


def code(session_id: str, text: str, **more: object) -> te.TaskRequest:
    request = tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=text))
    return te.TaskRequest(
        session_id=session_id,
        task_id=f"t-{secrets.token_hex(4)}",
        typed_request=request,
        **more,  # type: ignore[arg-type]
    )


async def test_output_comes_in_order_and_the_result_last(link: WorkerLink) -> None:
    request = code(await session(link), "for n in range(50000): print(n)")
    kinds, data = [], b""
    admitted: list[int] = []
    async for message in link.tasks(EXECUTE, request, admitted=lambda: admitted.append(1)):
        kinds.append(message.WhichOneof("payload"))
        data += message.log.data
    assert kinds[-1] == "result"
    assert data == b"".join(b"%d\n" % n for n in range(50000))
    assert admitted == [1]


async def test_a_reader_that_stops_holds_the_writer_and_loses_nothing(link: WorkerLink) -> None:
    request = code(await session(link), "import sys; sys.stdout.write('x' * 8_000_000)")
    read = 0
    async for message in link.tasks(EXECUTE, request):
        await asyncio.sleep(0)  # let the writer run as far as it may
        read += len(message.log.data)
    assert read == 8_000_000


async def test_leaving_a_stream_ends_the_task_as_its_policy_says(link: WorkerLink) -> None:
    made = await session(link)
    for policy, ends in ((te.ON_DISCONNECT_CANCEL, True), (te.ON_DISCONNECT_DETACH, False)):
        text = "print(1, flush=True)\nimport time\ntime.sleep(0.5)"
        request = code(made, text, on_disconnect=policy)
        stream = link.tasks(EXECUTE, request)
        async for message in stream:
            if message.log.data:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        query = te.AttachTaskRequest(session_id=made, task_id=request.task_id)
        last = [message async for message in link.tasks("TaskExecution/AttachTask", query)][-1]
        cancelled = last.result.status == te.TaskResult.STATUS_CANCELLED
        assert cancelled is ends


async def test_errors_are_told_on_as_the_worker_said_them(link: WorkerLink) -> None:
    with pytest.raises(RemoteNotFound) as caught:
        await link.unary(
            "SessionManagement/GetSessionStatus", sm.SessionStatusRequest(session_id="ses_x")
        )
    assert caught.value.reason == "SESSION_NOT_FOUND"
    bad = sm.CreateSessionRequest(config=sm.SessionConfig(language="cobol"))
    with pytest.raises(RemoteInvalidRequest, match="cobol"):
        await link.unary(CREATE, bad)
    with pytest.raises(NotImplementedYet):
        await link.unary("SessionManagement/Nothing", sm.CreateSessionRequest())


async def test_files_go_both_ways(link: WorkerLink) -> None:
    made = await session(link)

    async def chunks() -> AsyncIterator[files.UploadChunk]:
        yield files.UploadChunk(header=files.UploadHeader(session_id=made, path="f"))
        for _ in range(40):
            yield files.UploadChunk(data=b"x" * 50_000)
        yield files.UploadChunk(end=files.UploadEnd(size=2_000_000, sha256=SHA256))

    summary = await link.upload(chunks())
    assert summary.size == 2_000_000
    read = 0
    async for chunk in link.download(files.DownloadRequest(session_id=made, path="f")):
        read += len(chunk.data)
    assert read == 2_000_000


async def test_closing_ends_what_is_under_way_and_refuses_what_comes_later(
    link: WorkerLink,
) -> None:
    made = await session(link)
    begun = asyncio.Event()

    async def follow() -> None:
        async for message in link.tasks(
            EXECUTE, code(made, "print(1, flush=True)\nimport time\ntime.sleep(60)")
        ):
            if message.log.data:
                begun.set()

    following = asyncio.create_task(follow())
    await begun.wait()
    await link.close()
    with pytest.raises(LinkLost):
        await following
    with pytest.raises(LinkLost):
        await link.unary(CREATE, sm.CreateSessionRequest())
