"""The way out over the wire: what clients ask for, what they are told, what is refused."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp._proto.codegen.v1 import tools_pb2 as tools
from codegen_mcp.bootstrap.worker import Worker
from codegen_mcp.client import AsyncSandbox
from codegen_mcp.client.errors import SandboxException
from codegen_mcp.testing.wire import RichError, Wire, dial
from codegen_mcp.testing.worker import in_process_worker

pytestmark = pytest.mark.asyncio(loop_scope="module")

METADATA = "169.254.169.254"
ASK = f"""
import urllib.request as u
try: u.urlopen("http://{METADATA}/latest/", timeout=5)
except OSError as e: print(e.code)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[Worker]:
    async with in_process_worker(egress_allow="*", max_sessions=16) as made:
        if made.engine.egress.summary != "allow-list":
            pytest.skip("no backend of this machine has a way out")
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def wire(worker: Worker) -> AsyncIterator[Wire]:
    async with dial(worker.address) as made:
        yield made


async def refused(call: Any) -> RichError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return RichError(caught.value)


async def test_the_sdk_is_told_what_was_refused(worker):
    sandbox = await AsyncSandbox.create(address=worker.address)
    async with sandbox:
        done = await sandbox.run_python(ASK, allow_network=True)
        assert done.stdout == "403\n"
        (denial,) = done.network_denied
        assert (denial.host, denial.port, denial.count) == (METADATA, 80, 1)
        assert denial.reason == "a metadata service"
        assert f"{METADATA}:80" in done.remedy
        shell = await sandbox.commands.run(
            "python -c 'import os; print(os.environ.get(\"HTTPS_PROXY\"))'", allow_network=True
        )
        assert shell.stdout == "http://127.0.0.1:3128\n"
        without = await sandbox.run_python("import os; print(os.environ.get('HTTPS_PROXY'))")
        assert without.stdout == "None\n"
        assert without.network_denied == ()


async def test_a_session_with_the_network_narrows_it_for_all_its_tasks(worker):
    sandbox = await AsyncSandbox.create(
        address=worker.address, allow_network=True, allow_hosts=["pypi.org"]
    )
    async with sandbox:
        done = await sandbox.run_python(ASK)
        assert [one.reason for one in done.network_denied] == ["not on the session's allow list"]
        with pytest.raises(SandboxException, match="only narrow"):
            await sandbox.run_python("1", allow_network=True, allow_hosts=["example.com"])


async def test_a_bad_pattern_is_an_invalid_argument_with_words(wire):
    for config, field in (
        (sessions.SessionConfig(allow_hosts=["https://x.org/"]), "config.allow_hosts"),
        (sessions.SessionConfig(allow_hosts=["a b"]), "config.allow_hosts"),
        (sessions.SessionConfig(allow_hosts=["127.1"]), "config.allow_hosts"),
    ):
        error = await refused(
            wire.sessions.CreateSession(sessions.CreateSessionRequest(config=config))
        )
        assert error.code.name == "INVALID_ARGUMENT"
        assert error.info.metadata["field"] == field
        assert "write HOST" in error.message


async def test_an_unknown_secret_is_an_invalid_argument_by_name(wire):
    session = await wire.session()
    request = pb.TaskRequest(
        session_id=session,
        typed_request=tools.ToolRequest(run_python=tools.RunPythonRequest(code="1")),
        context=pb.TaskContext(secrets=["NOPE"]),
        constraints=pb.ExecutionConstraints(allow_network=True),
    )
    error = await refused(anext(aiter(wire.tasks.ExecuteTask(request))))
    assert (error.code.name, error.info.reason) == ("INVALID_ARGUMENT", "UNKNOWN_SECRET")
    assert error.info.metadata["secret"] == "NOPE"


async def test_capacity_and_status_say_that_there_is_a_way_out(wire):
    capacity = await wire.sessions.GetCapacity(sessions.CapacityRequest())
    assert capacity.metadata["egress"] == "allow-list"
    session = await wire.session()
    status = await wire.sessions.GetSessionStatus(sessions.SessionStatusRequest(session_id=session))
    assert status.info.isolation["egress"] == "allow-list"


async def test_a_repeated_request_is_answered_with_the_denials_that_were_recorded(wire):
    session = await wire.session()
    request = pb.TaskRequest(
        task_id="once",
        sequence=1,
        session_id=session,
        typed_request=tools.ToolRequest(run_python=tools.RunPythonRequest(code=ASK)),
        constraints=pb.ExecutionConstraints(allow_network=True),
    )
    ends = []
    for _ in range(2):
        async for response in wire.tasks.ExecuteTask(request):
            if response.WhichOneof("payload") == "result":
                ends.append(response.result.metadata)
    assert [one.host for one in ends[0].network_denied] == [METADATA]
    assert ends[0] == ends[1]
    request.constraints.allow_hosts.append(METADATA)
    error = await refused(anext(aiter(wire.tasks.ExecuteTask(request))))
    assert error.code.name == "ALREADY_EXISTS"


async def test_a_worker_without_an_allow_list_refuses_the_network_by_name(shared_worker):
    async with dial(shared_worker) as wire:
        error = await refused(
            wire.sessions.CreateSession(
                sessions.CreateSessionRequest(config=sessions.SessionConfig(allow_network=True))
            )
        )
        assert (error.code.name, error.info.reason) == ("INVALID_ARGUMENT", "FIELD_NOT_SUPPORTED")
        assert "EGRESS_ALLOW" in error.message
        capacity = await wire.sessions.GetCapacity(sessions.CapacityRequest())
        assert capacity.metadata["egress"] == "off"
