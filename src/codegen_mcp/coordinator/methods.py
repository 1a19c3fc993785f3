"""Every method of ``codegen.v1`` that a coordinator passes on, with its messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import Message

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as artifacts_pb
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as lifecycle_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb

PACKAGE = "/codegen.v1."


@dataclass(frozen=True, slots=True)
class Method:
    """The messages of one method."""

    request: type[Message]
    response: type[Message]


UNARY: Mapping[str, Method] = {
    "SessionManagement/CreateSession": Method(
        sessions_pb.CreateSessionRequest, sessions_pb.CreateSessionResponse
    ),
    "SessionManagement/DestroySession": Method(
        sessions_pb.DestroySessionRequest, sessions_pb.DestroySessionResponse
    ),
    "SessionManagement/CheckpointSession": Method(
        sessions_pb.CheckpointRequest, sessions_pb.CheckpointResponse
    ),
    "SessionManagement/RestoreSession": Method(
        sessions_pb.RestoreRequest, sessions_pb.RestoreResponse
    ),
    "SessionManagement/GetSessionStatus": Method(
        sessions_pb.SessionStatusRequest, sessions_pb.SessionStatusResponse
    ),
    "SessionManagement/GetSessionMetadata": Method(
        sessions_pb.GetSessionMetadataRequest, sessions_pb.GetSessionMetadataResponse
    ),
    "SessionManagement/UpdateSessionMetadata": Method(
        sessions_pb.UpdateSessionMetadataRequest, sessions_pb.UpdateSessionMetadataResponse
    ),
    "SessionManagement/SetSessionMetadata": Method(
        sessions_pb.SetSessionMetadataRequest, sessions_pb.SetSessionMetadataResponse
    ),
    "SessionManagement/GetCapacity": Method(
        sessions_pb.CapacityRequest, lifecycle_pb.SessionCapacity
    ),
    "SessionManagement/ListSessions": Method(
        sessions_pb.ListSessionsRequest, sessions_pb.ListSessionsResponse
    ),
    "SessionManagement/SetIdleTimeout": Method(
        sessions_pb.SetIdleTimeoutRequest, sessions_pb.SetIdleTimeoutResponse
    ),
    "SessionManagement/ForkSession": Method(sessions_pb.ForkRequest, sessions_pb.ForkResponse),
    "SessionManagement/ListCheckpoints": Method(
        sessions_pb.ListCheckpointsRequest, sessions_pb.ListCheckpointsResponse
    ),
    "SessionManagement/GetCheckpoint": Method(
        sessions_pb.GetCheckpointRequest, sessions_pb.GetCheckpointResponse
    ),
    "SessionManagement/DeleteCheckpoint": Method(
        sessions_pb.DeleteCheckpointRequest, sessions_pb.DeleteCheckpointResponse
    ),
    "TaskExecution/CancelTask": Method(tasks_pb.CancelRequest, tasks_pb.CancelResponse),
    "TaskExecution/GetTaskStatus": Method(tasks_pb.StatusRequest, tasks_pb.StatusResponse),
    "TaskExecution/ListTasks": Method(tasks_pb.ListTasksRequest, tasks_pb.ListTasksResponse),
    "TaskExecution/ListTools": Method(tasks_pb.ListToolsRequest, tasks_pb.ListToolsResponse),
    "ArtifactService/GetUploadURL": Method(artifacts_pb.UploadRequest, artifacts_pb.UploadResponse),
    "ArtifactService/RecordArtifact": Method(
        artifacts_pb.ArtifactMetadata, artifacts_pb.ArtifactResponse
    ),
    "ArtifactService/ListArtifacts": Method(
        artifacts_pb.ListArtifactsRequest, artifacts_pb.ListArtifactsResponse
    ),
    "ArtifactService/DeleteArtifact": Method(
        artifacts_pb.DeleteArtifactRequest, artifacts_pb.DeleteArtifactResponse
    ),
}

TASKS: Mapping[str, Method] = {
    "TaskExecution/ExecuteTask": Method(tasks_pb.TaskRequest, tasks_pb.TaskResponse),
    "TaskExecution/AttachTask": Method(tasks_pb.AttachTaskRequest, tasks_pb.TaskResponse),
}
"""One request, a stream of answers."""

UPLOAD = Method(files_pb.UploadChunk, files_pb.UploadSummary)
DOWNLOAD = Method(files_pb.DownloadRequest, files_pb.DownloadChunk)
