"""The router: one face for all workers, where every call is checked, routed and accounted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias

from google.protobuf.message import Message

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.artifact_calls import ArtifactFace
from codegen_mcp.coordinator.calls import SessionCalls
from codegen_mcp.coordinator.checkpoint_calls import CheckpointFace
from codegen_mcp.coordinator.directory.base import Directory
from codegen_mcp.coordinator.draining import Drainer
from codegen_mcp.coordinator.evicting import Evictor
from codegen_mcp.coordinator.failover import Failover
from codegen_mcp.coordinator.fencing import Fencing
from codegen_mcp.coordinator.file_calls import FileFace
from codegen_mcp.coordinator.making import Maker
from codegen_mcp.coordinator.moving import Mover
from codegen_mcp.coordinator.placement import Placement
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.routes import RouterConfig, Routes
from codegen_mcp.coordinator.session_calls import SessionFace
from codegen_mcp.coordinator.sweeping import Sweeper
from codegen_mcp.coordinator.task_calls import TaskFace
from codegen_mcp.coordinator.task_streams import ATTACH, EXECUTE, TaskStreams
from codegen_mcp.coordinator.tool_facts import ToolFacts
from codegen_mcp.coordinator.workers import Workers
from codegen_mcp.core.clock import BoottimeClock
from codegen_mcp.core.errors import NotImplementedYet
from codegen_mcp.engine.owned_tasks import OwnedTasks

Handler: TypeAlias = Callable[[Principal, Any], Awaitable[Message]]


class Router:
    """Implements ``base.Gateway``; an async context manager over what its opener has opened.

    Attributes:
        fencing: Compares what workers say they hold with the directory.
    """

    def __init__(
        self,
        directory: Directory,
        workers: Workers,
        config: RouterConfig | None = None,
        *,
        name: str = "coordinator",
    ) -> None:
        """Wire it.

        Args:
            directory: Open.
            workers: Entered; over the same directory.
            config: Times and bounds.
            name: In answers about all workers together.
        """
        self._tasks = OwnedTasks()
        self._routes = Routes(directory, workers, config or RouterConfig())
        placement = Placement(workers.all)
        failover = Failover(self._routes, placement, self._tasks)
        self._failover = failover
        self._mover = Mover(self._routes, failover, placement, self._tasks)
        self._evictor = Evictor(self._routes, placement, self._mover)
        calls = SessionCalls(self._routes, failover.revive, self._mover.move)
        maker = Maker(self._routes, self._evictor, self._tasks)
        tools = ToolFacts(self._routes)
        self.fencing = Fencing(self._routes, failover)
        self._sessions = SessionFace(self._routes, calls, maker, name)
        self._checkpoints = CheckpointFace(self._routes, calls, maker, failover, placement)
        self._artifacts = ArtifactFace(self._routes, calls)
        self._looks = TaskFace(self._routes, calls)
        self._streams = TaskStreams(self._routes, calls, self._looks, tools, self._tasks)
        self._files = FileFace(calls)
        self._calls = calls
        self._tools = tools
        self._handlers = self._table()
        self._drainer = Drainer(self._routes, self._mover, self._tasks)
        self._sweeper = Sweeper(self._routes, failover, BoottimeClock())
        workers.on_lost(failover.lost)

    def _table(self) -> Mapping[str, Handler]:
        def of_session(method: str) -> Handler:
            async def call(principal: Principal, request: Any) -> Message:
                return await self._calls.unary(principal, request.session_id, method, request)

            return call

        sessions, checkpoints = self._sessions, self._checkpoints
        artifacts, tasks = self._artifacts, self._looks
        table: dict[str, Handler] = {
            "SessionManagement/CreateSession": sessions.create,
            "SessionManagement/DestroySession": sessions.destroy,
            "SessionManagement/GetSessionStatus": sessions.status,
            "SessionManagement/ListSessions": sessions.page,
            "SessionManagement/GetCapacity": lambda who, _: sessions.capacity(who),
            "SessionManagement/CheckpointSession": checkpoints.save,
            "SessionManagement/RestoreSession": checkpoints.restore,
            "SessionManagement/ForkSession": checkpoints.fork,
            "SessionManagement/ListCheckpoints": checkpoints.page,
            "SessionManagement/GetCheckpoint": checkpoints.get,
            "SessionManagement/DeleteCheckpoint": checkpoints.delete,
            "TaskExecution/CancelTask": tasks.cancel,
            "TaskExecution/GetTaskStatus": tasks.status,
            "TaskExecution/ListTools": lambda _, __: self._tools.all(),
            "ArtifactService/GetUploadURL": artifacts.upload_url,
            "ArtifactService/RecordArtifact": artifacts.record,
            "ArtifactService/ListArtifacts": artifacts.page,
            "ArtifactService/DeleteArtifact": artifacts.delete,
        }
        for method in (
            "SessionManagement/GetSessionMetadata",
            "SessionManagement/UpdateSessionMetadata",
            "SessionManagement/SetSessionMetadata",
            "SessionManagement/SetIdleTimeout",
            "TaskExecution/ListTasks",
        ):
            table[method] = of_session(method)
        return table

    async def __aenter__(self) -> Self:
        await self._evictor.load()
        self._tasks.spawn(self._sweeper.run(), "router-sweep")
        self._tasks.spawn(self._drainer.watch(), "router-drain")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._tasks.aclose()

    async def unary(self, principal: Principal, method: str, request: Message) -> Message:
        """Do one unary call."""
        handler = self._handlers.get(method)
        if handler is None:
            raise NotImplementedYet(f"there is no method {method!r}")
        return await handler(principal, request)

    def tasks(
        self,
        principal: Principal,
        method: str,
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest,
    ) -> AsyncGenerator[tasks_pb.TaskResponse, None]:
        """Run or join a task."""
        if method == EXECUTE and isinstance(request, tasks_pb.TaskRequest):
            return self._streams.execute(principal, request)
        if method == ATTACH and isinstance(request, tasks_pb.AttachTaskRequest):
            return self._streams.attach(principal, request)
        raise NotImplementedYet(f"there is no method {method!r} for {type(request).__name__}")

    async def upload(
        self, principal: Principal, chunks: AsyncIterator[files_pb.UploadChunk]
    ) -> files_pb.UploadSummary:
        """Send a file into a workspace."""
        return await self._files.upload(principal, chunks)

    def download(
        self, principal: Principal, request: files_pb.DownloadRequest
    ) -> AsyncGenerator[files_pb.DownloadChunk, None]:
        """Fetch a file from a workspace."""
        return self._files.download(principal, request)
