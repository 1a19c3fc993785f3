from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from grpc import aio

from codegen_mcp._proto.codegen.v1 import (
    artifact_service_pb2,
    session_management_pb2,
    task_execution_pb2,
    tools_pb2,
    worker_lifecycle_pb2,
    workspace_files_pb2,
)
from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as artifacts_pb
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.testing.tenants import (
    SECRET,
    Asked,
    Ids,
    Tenants,
    compared,
    shared_tenants,
    two_tenants,
)
from codegen_mcp.testing.wire import RichError

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tenants]:
    """One service for all tests here that leave everything as it is."""
    async with shared_tenants(tmp_path_factory.mktemp("tenants")) as opened:
        yield opened


Make = Callable[[Ids], Message]

ECHO = tools_pb2.ToolRequest(echo=tools_pb2.EchoRequest(message="x"))

NOT_FOUND = "NOT_FOUND"
NOTHING = "an answer without anything of hers"
"""The same that a name gets that never was: an empty list, or that nothing was deleted."""
OWN = "an answer about the caller's own alone"

RPCS: dict[str, tuple[str, Make]] = {
    "SessionManagement/CreateSession": (
        "INVALID_ARGUMENT",
        lambda ids: sessions_pb.CreateSessionRequest(session_id=ids.session),
    ),
    "SessionManagement/DestroySession": (
        NOT_FOUND,
        lambda ids: sessions_pb.DestroySessionRequest(session_id=ids.session, force=True),
    ),
    "SessionManagement/CheckpointSession": (
        NOT_FOUND,
        lambda ids: sessions_pb.CheckpointRequest(session_id=ids.session),
    ),
    "SessionManagement/RestoreSession": (
        NOT_FOUND,
        lambda ids: sessions_pb.RestoreRequest(
            checkpoint_id=ids.checkpoint, create_new_session=True
        ),
    ),
    "SessionManagement/GetSessionStatus": (
        NOT_FOUND,
        lambda ids: sessions_pb.SessionStatusRequest(session_id=ids.session),
    ),
    "SessionManagement/GetSessionMetadata": (
        NOT_FOUND,
        lambda ids: sessions_pb.GetSessionMetadataRequest(session_id=ids.session),
    ),
    "SessionManagement/UpdateSessionMetadata": (
        NOT_FOUND,
        lambda ids: sessions_pb.UpdateSessionMetadataRequest(
            session_id=ids.session, metadata={"note": "bob"}
        ),
    ),
    "SessionManagement/SetSessionMetadata": (
        NOT_FOUND,
        lambda ids: sessions_pb.SetSessionMetadataRequest(
            session_id=ids.session, metadata={"note": "bob"}
        ),
    ),
    "SessionManagement/GetCapacity": (OWN, lambda ids: sessions_pb.CapacityRequest()),
    "SessionManagement/ListSessions": (
        OWN,
        lambda ids: sessions_pb.ListSessionsRequest(page_token=ids.session[:-1]),
    ),
    "SessionManagement/SetIdleTimeout": (
        NOT_FOUND,
        lambda ids: sessions_pb.SetIdleTimeoutRequest(
            session_id=ids.session, idle_timeout_seconds=1
        ),
    ),
    "SessionManagement/ForkSession": (
        NOT_FOUND,
        lambda ids: sessions_pb.ForkRequest(session_id=ids.session),
    ),
    "SessionManagement/ListCheckpoints": (
        NOTHING,
        lambda ids: sessions_pb.ListCheckpointsRequest(session_id=ids.session),
    ),
    "SessionManagement/GetCheckpoint": (
        NOT_FOUND,
        lambda ids: sessions_pb.GetCheckpointRequest(checkpoint_id=ids.checkpoint),
    ),
    "SessionManagement/DeleteCheckpoint": (
        NOT_FOUND,
        lambda ids: sessions_pb.DeleteCheckpointRequest(checkpoint_id=ids.checkpoint),
    ),
    "TaskExecution/ExecuteTask": (
        NOT_FOUND,
        lambda ids: tasks_pb.TaskRequest(
            session_id=ids.session, task_id=ids.task, typed_request=ECHO
        ),
    ),
    "TaskExecution/CancelTask": (NOT_FOUND, lambda ids: tasks_pb.CancelRequest(task_id=ids.task)),
    "TaskExecution/GetTaskStatus": (
        NOT_FOUND,
        lambda ids: tasks_pb.StatusRequest(task_id=ids.task),
    ),
    "TaskExecution/ListTasks": (
        NOT_FOUND,
        lambda ids: tasks_pb.ListTasksRequest(session_id=ids.session),
    ),
    "TaskExecution/AttachTask": (
        NOT_FOUND,
        lambda ids: tasks_pb.AttachTaskRequest(session_id=ids.session, task_id=ids.task),
    ),
    "TaskExecution/ListTools": (OWN, lambda ids: tasks_pb.ListToolsRequest()),
    "ArtifactService/GetUploadURL": (
        NOT_FOUND,
        lambda ids: artifacts_pb.UploadRequest(
            session_id=ids.session, artifact_name="x", size_bytes=1
        ),
    ),
    "ArtifactService/RecordArtifact": (
        NOT_FOUND,
        lambda ids: artifacts_pb.ArtifactMetadata(
            artifact_id=ids.artifact, name="bob", size_bytes=1, session_id=ids.session
        ),
    ),
    "ArtifactService/ListArtifacts": (
        NOT_FOUND,
        lambda ids: artifacts_pb.ListArtifactsRequest(artifact_id=ids.artifact),
    ),
    "ArtifactService/DeleteArtifact": (
        NOTHING,
        lambda ids: artifacts_pb.DeleteArtifactRequest(artifact_id=ids.artifact),
    ),
    "WorkspaceFiles/Upload": (
        NOT_FOUND,
        lambda ids: files_pb.UploadHeader(session_id=ids.session, path="secret.txt"),
    ),
    "WorkspaceFiles/Download": (
        NOT_FOUND,
        lambda ids: files_pb.DownloadRequest(session_id=ids.session, path="secret.txt"),
    ),
}
"""Every RPC with what a principal gets who names what is another's."""

OTHER_WAYS: dict[str, tuple[str, Make]] = {
    "SessionManagement/RestoreSession": (
        NOT_FOUND,
        lambda ids: sessions_pb.RestoreRequest(checkpoint_id=ids.checkpoint),
    ),
    "SessionManagement/DestroySession": (
        NOT_FOUND,
        lambda ids: sessions_pb.DestroySessionRequest(session_id=ids.session, save_checkpoint=True),
    ),
    "SessionManagement/ListCheckpoints": (OWN, lambda ids: sessions_pb.ListCheckpointsRequest()),
    "SessionManagement/ListSessions": (OWN, lambda ids: sessions_pb.ListSessionsRequest()),
    "TaskExecution/ExecuteTask": (
        NOT_FOUND,
        lambda ids: tasks_pb.TaskRequest(session_id=ids.session, typed_request=ECHO, sequence=1),
    ),
    "TaskExecution/CancelTask": (
        NOT_FOUND,
        lambda ids: tasks_pb.CancelRequest(task_id=ids.task, session_id=ids.session),
    ),
    "TaskExecution/GetTaskStatus": (
        NOT_FOUND,
        lambda ids: tasks_pb.StatusRequest(task_id=ids.task, session_id=ids.session),
    ),
    "TaskExecution/AttachTask": (
        NOT_FOUND,
        lambda ids: tasks_pb.AttachTaskRequest(task_id=ids.task),
    ),
    "ArtifactService/ListArtifacts": (
        NOTHING,
        lambda ids: artifacts_pb.ListArtifactsRequest(session_id=ids.session),
    ),
}
"""Other requests of the same RPCs."""

FOR_WORKERS = {"WorkerLifecycle"}
"""Services that no principal's token opens: ``test_worker_access``."""


def every_rpc() -> set[str]:
    modules = (
        session_management_pb2,
        task_execution_pb2,
        artifact_service_pb2,
        workspace_files_pb2,
        worker_lifecycle_pb2,
    )
    return {
        f"{service.name}/{method.name}"
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if service.name not in FOR_WORKERS
    }


async def test_every_rpc_has_a_row() -> None:
    assert set(RPCS) == every_rpc()


async def test_every_id_that_a_request_can_name_is_named() -> None:
    """A new field that names something of somebody's needs a row, too."""
    named: dict[str, set[str]] = {}
    ids = Ids(session="ses_1", task="t", checkpoint="ses_1.1.1", artifact="a")
    for table in (RPCS, OTHER_WAYS):
        for method, (_, make) in table.items():
            named.setdefault(method, set()).update(f.name for f, _ in make(ids).ListFields())
    for method, (_, make) in RPCS.items():
        wanted = {
            field.name
            for field in make(ids).DESCRIPTOR.fields
            if field.name in {"session_id", "task_id", "checkpoint_id", "artifact_id"}
        }
        chosen = {  # what a caller may not choose, and what is only a filter or a remark
            "SessionManagement/RestoreSession": {"session_id"},
            "ArtifactService/GetUploadURL": {"task_id"},
            "ArtifactService/RecordArtifact": {"task_id"},
            "ArtifactService/ListArtifacts": {"task_id"},
        }.get(method, set())
        assert wanted - chosen <= named[method], method


async def ask(tenants: Tenants, token: str, method: str, request: Any) -> tuple[str, str]:
    """Call; returns the status, and all that was said or answered."""
    service, _, name = method.partition("/")
    stubs = {
        "SessionManagement": tenants.wire.sessions,
        "TaskExecution": tenants.wire.tasks,
        "ArtifactService": tenants.wire.artifacts,
        "WorkspaceFiles": tenants.wire.files,
    }
    stub = getattr(stubs[service], name)
    metadata = tenants.as_(token)
    try:
        if name == "Upload":

            async def chunks() -> AsyncIterator[files_pb.UploadChunk]:
                yield files_pb.UploadChunk(header=request)
                yield files_pb.UploadChunk(data=b"bob was here")
                yield files_pb.UploadChunk(end=files_pb.UploadEnd(size=12))

            return "OK", str(await stub(chunks(), metadata=metadata))
        call = stub(request, metadata=metadata)
        if name in {"ExecuteTask", "AttachTask", "Download"}:
            return "OK", "".join([str(message) async for message in call])
        return "OK", str(await call)
    except aio.AioRpcError as error:
        rich = RichError(error)
        return rich.code.name, f"{rich.message} {rich.info.reason} {dict(rich.info.metadata)}"


async def test_what_is_anothers_is_like_what_never_was(tenants: Tenants) -> None:
    wrong: list[str] = []
    hers, unknown = tenants.hers, tenants.hers.unknown()
    for table in (RPCS, OTHER_WAYS):
        for method, (expected, make) in table.items():

            async def measured(ids: Ids, method: str = method, make: Make = make) -> Asked:
                tenants.work.take()
                status, said = await ask(tenants, tenants.bob, method, make(ids))
                return (status, ids.hide(said)), tenants.work.take()

            (status, said), other, unlike = await compared(measured, hers, unknown)
            if SECRET in said or (expected in {NOTHING, OWN} and "<session>" in said):
                wrong.append(f"{method}: {status} {said}")
            if status != (expected if expected not in {NOTHING, OWN} else "OK"):
                wrong.append(f"{method}: {status} {said}, expected {expected}")
            if (status, said) != other:
                wrong.append(f"{method}: {status} {said}, but never was: {other}")
            if unlike:
                wrong.append(f"{method}: {unlike}")
    await still_hers(tenants)
    assert not wrong, "\n".join(wrong)


async def still_hers(tenants: Tenants) -> None:
    """Everything of Alice's is as it was."""
    ids, alice = tenants.hers, tenants.alice

    async def get(method: str, request: Any) -> str:
        status, said = await ask(tenants, alice, method, request)
        assert status == "OK", (method, said)
        return said

    wanted = {
        "SessionManagement/GetSessionMetadata": sessions_pb.GetSessionMetadataRequest(
            session_id=ids.session
        ),
        "WorkspaceFiles/Download": files_pb.DownloadRequest(
            session_id=ids.session, path="secret.txt"
        ),
        "TaskExecution/AttachTask": tasks_pb.AttachTaskRequest(
            session_id=ids.session, task_id=ids.task
        ),
        "SessionManagement/GetCheckpoint": sessions_pb.GetCheckpointRequest(
            checkpoint_id=ids.checkpoint
        ),
        "ArtifactService/ListArtifacts": artifacts_pb.ListArtifactsRequest(
            artifact_id=ids.artifact
        ),
        "SessionManagement/ListSessions": sessions_pb.ListSessionsRequest(),
    }
    found = {method: await get(method, request) for method, request in wanted.items()}
    for method in (
        "SessionManagement/GetSessionMetadata",
        "WorkspaceFiles/Download",
        "TaskExecution/AttachTask",
    ):
        assert SECRET in found[method]
    assert ids.session in found["SessionManagement/ListSessions"]


async def test_a_name_is_not_taken_by_whoever_uses_it_too(tenants: Tenants) -> None:
    """Ids that callers choose are their own: tasks of the same id in two principals' sessions."""
    made = await tenants.wire.sessions.CreateSession(
        sessions_pb.CreateSessionRequest(), metadata=tenants.as_(tenants.bob)
    )
    request = tasks_pb.TaskRequest(
        session_id=made.session_id, task_id=tenants.hers.task, typed_request=ECHO
    )
    status, said = await ask(tenants, tenants.bob, "TaskExecution/ExecuteTask", request)
    assert (status, SECRET in said) == ("OK", False)
    for token, has_secret in ((tenants.bob, False), (tenants.alice, True)):
        attach = tasks_pb.AttachTaskRequest(task_id=tenants.hers.task)
        if token == tenants.alice:
            attach.session_id = tenants.hers.session
        status, said = await ask(tenants, token, "TaskExecution/AttachTask", attach)
        assert (status, SECRET in said) == ("OK", has_secret)
    for method in ("GetTaskStatus", "CancelTask"):
        kind = {"GetTaskStatus": tasks_pb.StatusRequest, "CancelTask": tasks_pb.CancelRequest}
        mixed = kind[method](session_id=tenants.hers.session, task_id=tenants.hers.task)
        status, _ = await ask(tenants, tenants.bob, f"TaskExecution/{method}", mixed)
        assert status == NOT_FOUND


async def test_a_token_that_was_revoked_opens_nothing(tmp_path: Path) -> None:
    async with two_tenants(tmp_path) as tenants:
        lines = tenants.tokens.read_text().splitlines(keepends=True)
        temporary = tmp_path / "new"
        temporary.touch(mode=0o600)
        temporary.write_text(lines[1])  # Bob's alone
        temporary.replace(tenants.tokens)
        listing = "SessionManagement/ListSessions", sessions_pb.ListSessionsRequest()
        async with asyncio.timeout(5):  # a revoked token may still work for a second
            while (await ask(tenants, tenants.alice, *listing))[0] == "OK":
                await asyncio.sleep(0.05)
        for method, (_, make) in RPCS.items():
            status, said = await ask(tenants, tenants.alice, method, make(tenants.hers))
            assert status == grpc.StatusCode.UNAUTHENTICATED.name, (method, said)
        assert (await ask(tenants, tenants.bob, *listing))[0] == "OK"
