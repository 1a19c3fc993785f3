"""Unary calls for workers that take no StreamCall: as the frames that they know.

A peer of the plain protocol has ``session_create`` alone. One that says hello also has frames to
destroy, checkpoint, restore and fork a session, and to cancel a task. What has no frame is
NotImplementedYet, and so is what its frame cannot say: nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

from google.protobuf.message import Message

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.core.errors import NotImplementedYet


class Level(IntEnum):
    """Which frames a peer knows."""

    PLAIN = 0
    """assignment, response, keepalive, session_create, session_created."""
    HELLO = 1
    """Also cancel, session_destroy, checkpoint, restore, fork, operation_result."""
    CALLS = 2
    """All."""


def no_frame(method: str, worker_id: str, level: Level) -> NotImplementedYet:
    """Return the error of a call that a peer has no frame for."""
    what = "only the plain protocol" if level is Level.PLAIN else "no frame for calls"
    return NotImplementedYet(
        f"worker {worker_id!r} cannot be dialled, and its TaskStream has {what}: {method} cannot "
        "reach it",
        reason="NO_FRAME",
        metadata={"method": method, "worker_id": worker_id},
    )


def create_frame(
    request: sessions_pb.CreateSessionRequest, worker_id: str
) -> pb.SessionCreateRequest:
    """Return the frame of CreateSession.

    Raises:
        NotImplementedYet: It has something that the frame cannot say.
    """
    config = request.config
    for name, value in (
        ("required_tools", config.required_tools),
        ("base_image", config.base_image),
    ):
        if value:
            raise NotImplementedYet(
                f"worker {worker_id!r} can only be reached by its TaskStream, which has no field "
                f"{name}; leave it out",
                reason="NO_FRAME",
                metadata={"field": name, "worker_id": worker_id},
            )
    frame = pb.SessionCreateRequest(
        session_id=request.session_id,
        workspace_id=request.workspace_id,
        user_id=request.user_id,
        env_vars=config.env_vars,
        metadata=request.metadata,
        limits=config.limits if config.HasField("limits") else None,
        epoch=request.epoch,
        language=config.language,
        auto_restore=config.auto_restore,
        allow_network=config.allow_network,
        allow_hosts=config.allow_hosts,
        durability=config.durability,
    )
    if config.HasField("idle_timeout_seconds"):
        frame.idle_timeout_seconds = config.idle_timeout_seconds
    if config.HasField("checkpoint_interval_seconds"):
        frame.checkpoint_interval_seconds = config.checkpoint_interval_seconds
    return frame


def _destroy(
    request: sessions_pb.DestroySessionRequest, operation_id: str, epoch: int
) -> pb.TaskStreamMessage:
    return pb.TaskStreamMessage(
        session_destroy=pb.SessionDestroy(
            operation_id=operation_id,
            session_id=request.session_id,
            force=request.force,
            save_checkpoint=request.save_checkpoint,
            epoch=epoch,
        )
    )


def _checkpoint(
    request: sessions_pb.CheckpointRequest, operation_id: str, epoch: int
) -> pb.TaskStreamMessage:
    return pb.TaskStreamMessage(
        checkpoint=pb.SessionCheckpoint(
            operation_id=operation_id,
            session_id=request.session_id,
            checkpoint_name=request.checkpoint_name,
            incremental=request.incremental,
            epoch=epoch,
        )
    )


def _restore(
    request: sessions_pb.RestoreRequest, operation_id: str, epoch: int
) -> pb.TaskStreamMessage:
    return pb.TaskStreamMessage(
        restore=pb.SessionRestore(
            operation_id=operation_id,
            checkpoint_id=request.checkpoint_id,
            session_id=request.session_id,
            epoch=request.epoch,
        )
    )


def _fork(request: sessions_pb.ForkRequest, operation_id: str, epoch: int) -> pb.TaskStreamMessage:
    if request.count > 1:
        raise NotImplementedYet(
            f"count={request.count}: this worker's TaskStream makes one copy at a time; ask for 1",
            reason="NO_FRAME",
            metadata={"field": "count"},
        )
    return pb.TaskStreamMessage(
        fork=pb.SessionFork(
            operation_id=operation_id,
            session_id=request.session_id,
            new_session_id=request.new_session_ids[0] if request.new_session_ids else "",
            metadata=request.metadata,
            epoch=epoch,
        )
    )


FRAMES: Mapping[str, Callable[..., pb.TaskStreamMessage]] = {
    "SessionManagement/DestroySession": _destroy,
    "SessionManagement/CheckpointSession": _checkpoint,
    "SessionManagement/RestoreSession": _restore,
    "SessionManagement/ForkSession": _fork,
}
"""By method: (request, operation_id, epoch) to its frame."""


def operation_answer(method: str, result: pb.SessionOperationResult, worker_id: str) -> Message:
    """Return the answer of a method, as far as the result of its operation tells it."""
    if method == "SessionManagement/DestroySession":
        return sessions_pb.DestroySessionResponse(
            destroyed=True, checkpoint_id=result.checkpoint_id
        )
    if method == "SessionManagement/CheckpointSession":
        return sessions_pb.CheckpointResponse(
            checkpoint_id=result.checkpoint_id,
            metadata=sessions_pb.CheckpointMetadata(session_id=result.session_id),
        )
    if method == "SessionManagement/RestoreSession":
        return sessions_pb.RestoreResponse(
            session_id=result.session_id,
            worker_id=worker_id,
            state=common_pb2.SESSION_STATE_READY,
        )
    return sessions_pb.ForkResponse(
        session_id=result.session_id,
        worker_id=worker_id,
        state=common_pb2.SESSION_STATE_READY,
        session_ids=[result.session_id],
    )
