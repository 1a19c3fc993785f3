"""SessionManagement's calls for checkpoints and forks."""

from __future__ import annotations

from contextlib import suppress

from codegen_mcp._proto.codegen.v1 import common_pb2, session_management_pb2_grpc
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.core.checkpoint import CheckpointInfo
from codegen_mcp.core.errors import NotFound, NotImplementedYet, WrongState
from codegen_mcp.engine.base import Sessions, SessionView, Tasks
from codegen_mcp.engine.checkpoints.base import Checkpoints
from codegen_mcp.server import convert_checkpoints as convert
from codegen_mcp.server import convert_sessions
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.server.interceptors import Context

MAX_PAGE = 500
LAST_SAVES = 3
"""How often a session that is still used is saved before its end."""
NO_CHECKPOINTS = (
    "this worker has no checkpoints; a session's files live in its workspace until it is destroyed"
)


class CheckpointService(session_management_pb2_grpc.SessionManagementServicer):
    """Saves, restores and branches the sessions of one worker."""

    def __init__(
        self,
        sessions: Sessions,
        tasks: Tasks,
        config: ServerConfig,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._sessions = sessions
        self._tasks = tasks
        self._config = config
        self._checkpoints = checkpoints

    @property
    def checkpoints(self) -> Checkpoints:
        """Who keeps them.

        Raises:
            NotImplementedYet: This worker keeps none.
        """
        if self._checkpoints is None:
            raise NotImplementedYet(NO_CHECKPOINTS)
        return self._checkpoints

    async def CheckpointSession(
        self, request: pb.CheckpointRequest, context: Context
    ) -> pb.CheckpointResponse:
        """Save."""
        info = await self.checkpoints.save(
            request.session_id, name=request.checkpoint_name, incremental=request.incremental
        )
        return convert.taken(info)

    async def RestoreSession(
        self, request: pb.RestoreRequest, context: Context
    ) -> pb.RestoreResponse:
        """Restore into a new session, or in place."""
        checkpoints = self.checkpoints
        self.check_worker(request.worker_id)
        restored = await checkpoints.restore(
            request.checkpoint_id,
            create_new_session=request.create_new_session,
            session_id=request.session_id,
            epoch=request.epoch,
        )
        view = self._sessions.get(restored.session_id)
        return convert.restored(restored, view, self._config.worker_id)

    async def ForkSession(self, request: pb.ForkRequest, context: Context) -> pb.ForkResponse:
        """Copy; what was copied is ended again when its metadata cannot be kept."""
        checkpoints = self.checkpoints
        before = self._sessions.metadata(request.session_id)
        changes = convert_sessions.metadata(request.metadata, before)
        count = request.count or len(request.new_session_ids) or 1
        made = await checkpoints.fork(request.session_id, count, new_ids=request.new_session_ids)
        try:
            for session_id in made if changes else ():
                await self._sessions.update_metadata(session_id, changes, replace=False)
        except BaseException:
            for session_id in made:
                await self._sessions.destroy(session_id, force=True)
            raise
        return pb.ForkResponse(
            session_id=made[0],
            worker_id=self._config.worker_id,
            state=convert_sessions.STATES[self._sessions.get(made[0]).state],
            session_ids=made,
        )

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsResponse:
        """One page."""
        return convert.page(await self.checkpoints.list(request.session_id), request, MAX_PAGE)

    async def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
        """All that is known of one."""
        info = await self.checkpoints.get(request.checkpoint_id)
        return pb.GetCheckpointResponse(checkpoint=convert.listed(info))

    async def DeleteCheckpoint(
        self, request: pb.DeleteCheckpointRequest, context: Context
    ) -> pb.DeleteCheckpointResponse:
        """Delete."""
        await self.checkpoints.delete(request.checkpoint_id)
        return pb.DeleteCheckpointResponse(deleted=True)

    def check_worker(self, worker_id: str) -> None:
        """Refuse a request that is meant for another worker.

        Raises:
            WrongState: It names another one.
        """
        if worker_id not in {"", self._config.worker_id}:
            raise WrongState(
                f"this worker is {self._config.worker_id!r}, not {worker_id[:80]!r}; "
                "leave worker_id empty or ask that worker",
                reason="WRONG_WORKER",
                metadata={"worker_id": self._config.worker_id},
            )

    def describe(self, view: SessionView) -> common_pb2.SessionInfo:
        """A session as it is now, with its newest checkpoint and highest sequence."""
        last = self._checkpoints.last(view.session_id) if self._checkpoints is not None else ""
        sequence = 0
        with suppress(NotFound):  # it ends just now
            sequence = self._tasks.last_sequence(view.session_id)
        return convert_sessions.info(view, last_checkpoint_id=last, last_sequence=sequence)

    async def save_for_the_last_time(self, session_id: str, *, force: bool) -> CheckpointInfo:
        """Save a session that ends next; what tasks did meanwhile is saved too, unless forced.

        Raises:
            WrongState: Not forced, and tasks are under way: what they still do would be lost.
        """
        for _ in range(LAST_SAVES):
            before = self._sessions.get(session_id)
            if not force:
                refuse_busy(before)
            info = await self.checkpoints.save(session_id, incremental=True, trigger="destroy")
            after = self._sessions.get(session_id)
            if force or (not after.active_tasks and after.recent_tasks == before.recent_tasks):
                return info
        raise busy(session_id, "tasks begin while it is saved")


def refuse_busy(view: SessionView) -> None:
    """Refuse while tasks are under way.

    Raises:
        WrongState: They are.
    """
    if view.active_tasks:
        raise busy(view.session_id, f"{view.active_tasks} tasks are under way")


def busy(session_id: str, why: str) -> WrongState:
    """Return the error of a session that cannot be saved for the last time yet."""
    return WrongState(
        f"session {session_id!r} was not ended: {why}, and a checkpoint would lack what they do; "
        "wait for them, cancel them, or set force to end them with the session",
        reason="SESSION_BUSY",
        metadata={"session_id": session_id},
    )
