"""SessionManagement: sessions over the wire."""

from __future__ import annotations

from collections.abc import Collection

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import session_management_pb2_grpc, worker_lifecycle_pb2
from codegen_mcp.core.errors import NotImplementedYet, WrongState
from codegen_mcp.engine.base import Sessions
from codegen_mcp.server import convert_sessions as convert
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.server.interceptors import Context

MAX_PAGE = 500
NO_CHECKPOINTS = (
    "this worker has no checkpoints; a session's files live in its workspace until it is destroyed"
)


class SessionService(session_management_pb2_grpc.SessionManagementServicer):
    """Answers for the sessions of one worker."""

    def __init__(self, sessions: Sessions, config: ServerConfig, tools: Collection[str]) -> None:
        self._sessions = sessions
        self._config = config
        self._tools = tools

    async def CreateSession(
        self, request: pb.CreateSessionRequest, context: Context
    ) -> pb.CreateSessionResponse:
        """Make a session."""
        if request.worker_id not in {"", self._config.worker_id}:
            raise WrongState(
                f"this worker is {self._config.worker_id!r}, not {request.worker_id[:80]!r}; "
                "leave worker_id empty or ask that worker",
                reason="WRONG_WORKER",
                metadata={"worker_id": self._config.worker_id},
            )
        config = convert.session_config(request, self._sessions.default_limits, self._tools)
        view = await self._sessions.create(config)
        return convert.created(view, self._config.worker_id)

    async def DestroySession(
        self, request: pb.DestroySessionRequest, context: Context
    ) -> pb.DestroySessionResponse:
        """End a session."""
        if request.save_checkpoint:
            raise NotImplementedYet(
                f"save_checkpoint: {NO_CHECKPOINTS}; the session was not touched"
            )
        await self._sessions.destroy(request.session_id, force=request.force)
        return pb.DestroySessionResponse(destroyed=True)

    async def GetSessionStatus(
        self, request: pb.SessionStatusRequest, context: Context
    ) -> pb.SessionStatusResponse:
        """State, usage and last tasks."""
        return convert.status(self._sessions.get(request.session_id), self._config.worker_id)

    async def GetSessionMetadata(
        self, request: pb.GetSessionMetadataRequest, context: Context
    ) -> pb.GetSessionMetadataResponse:
        """The whole metadata."""
        return pb.GetSessionMetadataResponse(
            session_id=request.session_id, metadata=self._sessions.metadata(request.session_id)
        )

    async def UpdateSessionMetadata(
        self, request: pb.UpdateSessionMetadataRequest, context: Context
    ) -> pb.UpdateSessionMetadataResponse:
        """Merge."""
        before = self._sessions.metadata(request.session_id)
        whole = await self._sessions.update_metadata(
            request.session_id, convert.metadata(request.metadata, before), replace=False
        )
        return pb.UpdateSessionMetadataResponse(session_id=request.session_id, metadata=whole)

    async def SetSessionMetadata(
        self, request: pb.SetSessionMetadataRequest, context: Context
    ) -> pb.SetSessionMetadataResponse:
        """Replace."""
        whole = await self._sessions.update_metadata(
            request.session_id, convert.metadata(request.metadata), replace=True
        )
        return pb.SetSessionMetadataResponse(session_id=request.session_id, metadata=whole)

    async def GetCapacity(
        self, request: pb.CapacityRequest, context: Context
    ) -> worker_lifecycle_pb2.SessionCapacity:
        """Room, sessions, and what this worker enforces."""
        return convert.capacity(
            self._sessions.capacity(),
            worker_id=self._config.worker_id,
            version=self._config.version,
            facts=self._config.facts,
        )

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """One page."""
        return convert.page(self._sessions.list(), request, MAX_PAGE)

    async def SetIdleTimeout(
        self, request: pb.SetIdleTimeoutRequest, context: Context
    ) -> pb.SetIdleTimeoutResponse:
        """Change when an idle session is cleaned up."""
        seconds = convert.positive_seconds("idle_timeout_seconds", request.idle_timeout_seconds)
        await self._sessions.set_idle_timeout(request.session_id, seconds)
        return pb.SetIdleTimeoutResponse(session_id=request.session_id)

    async def CheckpointSession(
        self, request: pb.CheckpointRequest, context: Context
    ) -> pb.CheckpointResponse:
        """Refuse."""
        raise NotImplementedYet(NO_CHECKPOINTS)

    async def RestoreSession(
        self, request: pb.RestoreRequest, context: Context
    ) -> pb.RestoreResponse:
        """Refuse."""
        raise NotImplementedYet(NO_CHECKPOINTS)

    async def ForkSession(self, request: pb.ForkRequest, context: Context) -> pb.ForkResponse:
        """Refuse."""
        raise NotImplementedYet(NO_CHECKPOINTS)

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsResponse:
        """Refuse."""
        raise NotImplementedYet(NO_CHECKPOINTS)

    async def DeleteCheckpoint(
        self, request: pb.DeleteCheckpointRequest, context: Context
    ) -> pb.DeleteCheckpointResponse:
        """Refuse."""
        raise NotImplementedYet(NO_CHECKPOINTS)
