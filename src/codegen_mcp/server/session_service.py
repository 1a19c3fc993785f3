"""SessionManagement: sessions over the wire."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2
from codegen_mcp.core.errors import Unavailable
from codegen_mcp.engine.artifacts.base import Artifacts
from codegen_mcp.engine.base import Sessions, Tasks
from codegen_mcp.engine.checkpoints.base import Checkpoints
from codegen_mcp.server import convert_sessions as convert
from codegen_mcp.server.checkpoint_service import MAX_PAGE, CheckpointService
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.server.interceptors import Context

log = structlog.get_logger()

MAX_ARTIFACTS = 1000
"""Ids in the answer of DestroySession."""


class SessionService(CheckpointService):
    """Answers for the sessions of one worker."""

    def __init__(
        self,
        sessions: Sessions,
        tasks: Tasks,
        config: ServerConfig,
        *,
        checkpoints: Checkpoints | None = None,
        artifacts: Artifacts | None = None,
    ) -> None:
        super().__init__(sessions, tasks, config, checkpoints)
        self._tools = frozenset(spec.name for spec in tasks.specs)
        self._artifacts = artifacts

    async def CreateSession(
        self, request: pb.CreateSessionRequest, context: Context
    ) -> pb.CreateSessionResponse:
        """Make a session."""
        self.check_worker(request.worker_id)
        config = convert.session_config(
            request,
            self._sessions.default_limits,
            self._tools,
            checkpoints=self._checkpoints is not None,
        )
        view = await self._sessions.create(config)
        return convert.created(view, self._config.worker_id)

    async def DestroySession(
        self, request: pb.DestroySessionRequest, context: Context
    ) -> pb.DestroySessionResponse:
        """End a session, once its checkpoint is durable if one was asked for."""
        session_id, checkpoint_id = request.session_id, ""
        if request.save_checkpoint:
            info = await self.save_for_the_last_time(session_id, force=request.force)
            checkpoint_id = str(info.checkpoint_id)
        artifacts = await self._artifacts_of(session_id)
        await self._sessions.destroy(session_id, force=request.force)
        return pb.DestroySessionResponse(
            destroyed=True, checkpoint_id=checkpoint_id, artifacts=artifacts
        )

    async def _artifacts_of(self, session_id: str) -> Sequence[str]:
        """Name what it left; nothing where that cannot be told now, which is no reason to stay."""
        if self._artifacts is None:
            return ()
        try:
            found = await self._artifacts.list(session_id, limit=MAX_ARTIFACTS)
        except Unavailable:
            log.warning("session.artifacts_not_listed", session_id=session_id, exc_info=True)
            return ()
        return [info.artifact_id for info in found]

    async def GetSessionStatus(
        self, request: pb.SessionStatusRequest, context: Context
    ) -> pb.SessionStatusResponse:
        """State, usage and last tasks."""
        view = self._sessions.get(request.session_id)
        return convert.status(view, self._config.worker_id, self.describe)

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
        return self.capacity()

    def capacity(self, *, measured: bool = True) -> worker_lifecycle_pb2.SessionCapacity:
        """Answer GetCapacity."""
        return convert.capacity(
            self._sessions.capacity(measured=measured),
            self.describe,
            worker_id=self._config.worker_id,
            version=self._config.version,
            facts=self._config.facts,
        )

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """One page."""
        return convert.page(self._sessions.list(), request, MAX_PAGE, self.describe)

    async def SetIdleTimeout(
        self, request: pb.SetIdleTimeoutRequest, context: Context
    ) -> pb.SetIdleTimeoutResponse:
        """Change when an idle session is cleaned up."""
        seconds = convert.positive_seconds("idle_timeout_seconds", request.idle_timeout_seconds)
        await self._sessions.set_idle_timeout(request.session_id, seconds)
        return pb.SetIdleTimeoutResponse(session_id=request.session_id)
