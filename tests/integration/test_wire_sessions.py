from __future__ import annotations

import grpc
import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as artifacts
from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.testing.wire import RichError, memory_worker
from codegen_mcp.tools.registry import TOOLS


async def test_a_session_is_made_with_what_was_asked_for():
    async with memory_worker() as worker:
        request = pb.CreateSessionRequest(
            worker_id="memory-worker",
            workspace_id="ws",
            user_id="me",
            metadata={"purpose": "test"},
            config=pb.SessionConfig(
                required_tools=["echo", "run.python"],
                env_vars={"A": "1"},
                idle_timeout_seconds=77,
                limits=common_pb2.ResourceLimits(
                    max_memory_bytes=300, max_memory_per_session=200, max_pids=9
                ),
            ),
        )
        made = await worker.wire.sessions.CreateSession(request)
        status = await worker.wire.sessions.GetSessionStatus(
            pb.SessionStatusRequest(session_id=made.session_id)
        )
    assert made.worker_id == "memory-worker"
    assert made.workspace_path == "/workspace"
    assert made.state == common_pb2.SESSION_STATE_READY
    assert dict(made.metadata) == {"purpose": "test"}
    assert dict(made.isolation) == {"sandbox": "none"}
    assert made.incarnation == 1
    assert worker.engine.sessions.idle_timeouts[made.session_id] == 77
    assert (made.limits.max_memory_bytes, made.limits.max_pids) == (200, 9)
    assert made.limits.max_cpu_millicores == 1000
    assert status.info.workspace_id == "ws"
    assert status.info.user_id == "me"
    assert status.info.limits == made.limits
    assert status.worker_id == "memory-worker"


async def test_another_worker_s_id_is_refused():
    async with memory_worker() as worker:
        error = await refused(
            worker.wire.sessions.CreateSession(pb.CreateSessionRequest(worker_id="other"))
        )
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.info.reason == "WRONG_WORKER"
    assert error.info.metadata["worker_id"] == "memory-worker"


async def test_a_full_worker_says_when_to_come_back():
    async with memory_worker(max_sessions=1) as worker:
        await worker.wire.session()
        error = await refused(worker.wire.sessions.CreateSession(pb.CreateSessionRequest()))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (error.info.reason, error.info.domain) == ("FULL", "codegen.v1")
    assert (error.retry.retry_delay.seconds, error.retry.retry_delay.nanos) == (1, 500_000_000)


@pytest.mark.parametrize(
    ("config", "field", "reason"),
    [
        (pb.SessionConfig(language="python@x"), "config.language", "INVALID_REQUEST"),
        (
            pb.SessionConfig(required_tools=["echo", "gpu"]),
            "config.required_tools",
            "FIELD_NOT_SUPPORTED",
        ),
        (
            pb.SessionConfig(limits=common_pb2.ResourceLimits(max_disk_bytes=-1)),
            "config.limits.max_disk_bytes",
            "INVALID_REQUEST",
        ),
        (pb.SessionConfig(env_vars={"A=B": "x"}), "config.env_vars", "INVALID_REQUEST"),
        (pb.SessionConfig(env_vars={"A": "x" * 200_000}), "config.env_vars", "INVALID_REQUEST"),
        (
            pb.SessionConfig(idle_timeout_seconds=0),
            "config.idle_timeout_seconds",
            "INVALID_REQUEST",
        ),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(config, field, reason):
    async with memory_worker() as worker:
        error = await refused(
            worker.wire.sessions.CreateSession(pb.CreateSessionRequest(config=config))
        )
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.info.reason == reason
    assert error.info.metadata["field"] == field
    assert field in error.message


async def test_a_missing_tool_is_named():
    async with memory_worker() as worker:
        config = pb.SessionConfig(required_tools=["gpu"])
        error = await refused(
            worker.wire.sessions.CreateSession(pb.CreateSessionRequest(config=config))
        )
    assert "'gpu'" in error.message
    assert "run.python" in error.message


async def test_a_destroyed_session_is_gone_for_every_call():
    async with memory_worker() as worker:
        sessions = worker.wire.sessions
        session_id = await worker.wire.session()
        done = await sessions.DestroySession(pb.DestroySessionRequest(session_id=session_id))
        calls = [
            sessions.DestroySession(pb.DestroySessionRequest(session_id=session_id)),
            sessions.GetSessionStatus(pb.SessionStatusRequest(session_id=session_id)),
            sessions.GetSessionMetadata(pb.GetSessionMetadataRequest(session_id=session_id)),
            sessions.UpdateSessionMetadata(pb.UpdateSessionMetadataRequest(session_id=session_id)),
            sessions.SetSessionMetadata(pb.SetSessionMetadataRequest(session_id=session_id)),
            sessions.SetIdleTimeout(
                pb.SetIdleTimeoutRequest(session_id=session_id, idle_timeout_seconds=1)
            ),
        ]
        errors = [await refused(call) for call in calls]
    assert done.destroyed
    assert {error.code for error in errors} == {grpc.StatusCode.NOT_FOUND}
    assert {error.info.reason for error in errors} == {"SESSION_NOT_FOUND"}


async def test_update_merges_metadata_and_set_replaces_it():
    async with memory_worker() as worker:
        sessions = worker.wire.sessions
        session_id = await worker.wire.session(metadata={"a": "1", "b": "2"})
        merged = await sessions.UpdateSessionMetadata(
            pb.UpdateSessionMetadataRequest(session_id=session_id, metadata={"b": "3", "c": "4"})
        )
        read = await sessions.GetSessionMetadata(
            pb.GetSessionMetadataRequest(session_id=session_id)
        )
        replaced = await sessions.SetSessionMetadata(
            pb.SetSessionMetadataRequest(session_id=session_id, metadata={"d": "5"})
        )
    assert dict(merged.metadata) == dict(read.metadata) == {"a": "1", "b": "3", "c": "4"}
    assert dict(replaced.metadata) == {"d": "5"}


async def test_metadata_cannot_grow_beyond_its_bound():
    async with memory_worker() as worker:
        session_id = await worker.wire.session(metadata={"a": "x" * 200_000})
        update = pb.UpdateSessionMetadataRequest(
            session_id=session_id, metadata={"b": "x" * 100_000}
        )
        error = await refused(worker.wire.sessions.UpdateSessionMetadata(update))
        kept = worker.engine.sessions.metadata(session_id)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.info.reason == "LIMIT_EXCEEDED"
    assert list(kept) == ["a"]


async def test_capacity_counts_sessions_and_tells_the_worker_s_facts():
    async with memory_worker(max_sessions=3, facts={"isolation.network": "kernel"}) as worker:
        session_id = await worker.wire.session()
        room = await worker.wire.sessions.GetCapacity(pb.CapacityRequest())
    assert (room.total_sessions, room.active_sessions, room.available_sessions) == (3, 1, 2)
    assert [info.session_id for info in room.sessions] == [session_id]
    assert dict(room.metadata) == {"isolation.network": "kernel"}
    assert room.worker_id == "memory-worker"
    assert room.version


async def test_pages_show_each_session_once_while_others_come_and_go():
    async with memory_worker(max_sessions=20) as worker:
        sessions = worker.wire.sessions
        made = [await worker.wire.session() for _ in range(7)]
        first = await sessions.ListSessions(pb.ListSessionsRequest(page_size=3))
        gone = first.sessions[-1].session_id
        await sessions.DestroySession(pb.DestroySessionRequest(session_id=gone))
        late = await worker.wire.session()
        seen = [info.session_id for info in first.sessions]
        token = first.next_page_token
        while token:
            page = await sessions.ListSessions(
                pb.ListSessionsRequest(page_size=3, page_token=token)
            )
            seen += [info.session_id for info in page.sessions]
            token = page.next_page_token
        bad = await refused(sessions.ListSessions(pb.ListSessionsRequest(page_token="nonsense")))
    assert len(seen) == len(set(seen))
    assert set(made) <= set(seen) <= {*made, late}
    assert bad.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_idle_timeout_can_be_changed_to_something_positive():
    async with memory_worker() as worker:
        session_id = await worker.wire.session()
        sessions = worker.wire.sessions
        await sessions.SetIdleTimeout(
            pb.SetIdleTimeoutRequest(session_id=session_id, idle_timeout_seconds=9)
        )
        error = await refused(
            sessions.SetIdleTimeout(pb.SetIdleTimeoutRequest(session_id=session_id))
        )
    assert worker.engine.sessions.idle_timeouts == {session_id: 9}
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_worker_without_checkpoints_refuses_one_on_destroy_and_the_session_stays():
    async with memory_worker(checkpoints=False) as worker:
        session_id = await worker.wire.session()
        request = pb.DestroySessionRequest(session_id=session_id, save_checkpoint=True, force=True)
        error = await refused(worker.wire.sessions.DestroySession(request))
        assert worker.engine.sessions.get(session_id)
    assert error.code is grpc.StatusCode.UNIMPLEMENTED
    assert error.info.reason == "NOT_IMPLEMENTED"


async def test_checkpoints_and_artifacts_say_that_they_are_not_there():
    async with memory_worker(checkpoints=False) as worker:
        sessions, kept = worker.wire.sessions, worker.wire.artifacts
        calls = [
            sessions.CheckpointSession(pb.CheckpointRequest()),
            sessions.RestoreSession(pb.RestoreRequest()),
            sessions.ForkSession(pb.ForkRequest()),
            sessions.ListCheckpoints(pb.ListCheckpointsRequest()),
            sessions.GetCheckpoint(pb.GetCheckpointRequest()),
            sessions.DeleteCheckpoint(pb.DeleteCheckpointRequest()),
            kept.GetUploadURL(artifacts.UploadRequest()),
            kept.RecordArtifact(artifacts.ArtifactMetadata()),
            kept.ListArtifacts(artifacts.ListArtifactsRequest()),
            kept.DeleteArtifact(artifacts.DeleteArtifactRequest()),
        ]
        errors = [await refused(call) for call in calls]
    assert {error.code for error in errors} == {grpc.StatusCode.UNIMPLEMENTED}
    assert {error.info.reason for error in errors} == {"NOT_IMPLEMENTED"}
    assert all(error.message for error in errors)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (pb.SessionConfig(auto_restore=True), "config.auto_restore"),
        (pb.SessionConfig(durability=common_pb2.DURABILITY_SYNC), "config.durability"),
        (pb.SessionConfig(checkpoint_interval_seconds=9), "config.checkpoint_interval_seconds"),
    ],
)
async def test_a_worker_without_checkpoints_refuses_what_needs_them_by_name(config, field):
    async with memory_worker(checkpoints=False) as worker:
        error = await refused(
            worker.wire.sessions.CreateSession(pb.CreateSessionRequest(config=config))
        )
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.info.reason == "FIELD_NOT_SUPPORTED"
    assert error.info.metadata["field"] == field


async def test_every_tool_may_be_required():
    async with memory_worker() as worker:
        names = [tool.spec.name for tool in TOOLS]
        assert await worker.wire.session(config=pb.SessionConfig(required_tools=names))


async def refused(call: aio.UnaryUnaryCall) -> RichError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return RichError(caught.value)
