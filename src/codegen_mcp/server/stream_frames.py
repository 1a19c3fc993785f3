"""Between the frames of a TaskStream and the messages of the worker's own services.

The task messages of a stream are twins of those of TaskExecution: same numbers, same types. One is
the other after its bytes were read again.
"""

from __future__ import annotations

from google.protobuf.message import Message
from google.rpc import status_pb2

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.server.convert import MAX_MESSAGE_BYTES
from codegen_mcp.server.status import details_json, failure_from, failure_of, trailers

ROOM_BYTES = 4096
"""For what is around a result in its frame."""


def task_request(assignment: pb.TaskAssignment, session_id: str) -> tasks_pb.TaskRequest:
    """Return the call that an assignment stands for."""
    request = tasks_pb.TaskRequest.FromString(assignment.SerializeToString())
    request.DiscardUnknownFields()  # what only the stream has
    request.session_id = session_id
    return request


def response(assignment: pb.TaskAssignment, data: bytes) -> pb.TaskStreamResponse:
    """Return a message of ExecuteTask's answer as it travels here."""
    twin = pb.TaskStreamResponse.FromString(data)
    twin.task_id = assignment.task_id or twin.task_id
    twin.stream_id = assignment.stream_id
    if twin.HasField("result"):
        twin.result.sequence = assignment.sequence
    return twin


def add_metadata(twin: pb.TaskStreamResponse, metadata: dict[str, str]) -> None:
    """Tell the session's metadata with a result, where both fit into a message."""
    told = pb.TaskStreamResult(session_metadata=metadata)
    if twin.ByteSize() + told.ByteSize() <= MAX_MESSAGE_BYTES - ROOM_BYTES:
        twin.result.MergeFrom(told)


def status_of(error: Exception) -> status_pb2.Status:
    """Return what a caller is told of an error before any handler."""
    rich = dict(trailers(failure_of(error), ""))["grpc-status-details-bin"]
    assert isinstance(rich, bytes)
    return status_pb2.Status.FromString(rich)


def refusal(assignment: pb.TaskAssignment, status: status_pb2.Status) -> pb.TaskStreamResponse:
    """Return what an assignment is answered with that never became a task."""
    return pb.TaskStreamResponse(
        task_id=assignment.task_id, stream_id=assignment.stream_id, error=stream_error(status)
    )


def stream_error(status: status_pb2.Status) -> pb.TaskStreamError:
    """Return a status as the stream tells it: in words for any peer, and exactly."""
    failure = failure_from(status)
    return pb.TaskStreamError(
        code=failure.code.name,
        message=failure.message,
        details=details_json(failure),
        retriable=failure.retriable,
        status=status.SerializeToString(),
    )


def create_request(frame: pb.SessionCreateRequest, session_id: str) -> Message:
    """Return CreateSession for a frame."""
    request = sessions_pb.CreateSessionRequest(
        workspace_id=frame.workspace_id,
        user_id=frame.user_id,
        config=sessions_pb.SessionConfig(
            env_vars=frame.env_vars,
            language=frame.language,
            limits=frame.limits if frame.HasField("limits") else None,
            auto_restore=frame.auto_restore,
            allow_network=frame.allow_network,
            allow_hosts=frame.allow_hosts,
            durability=frame.durability,
        ),
        metadata=frame.metadata,
        session_id=session_id,
        epoch=frame.epoch,
    )
    for name in ("idle_timeout_seconds", "checkpoint_interval_seconds"):
        if frame.HasField(name):  # the two have presence
            setattr(request.config, name, getattr(frame, name))
    return request
