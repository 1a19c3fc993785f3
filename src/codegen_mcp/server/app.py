"""The worker's gRPC server: built, started, drained and stopped in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType

import grpc
import structlog
from google.protobuf.descriptor_pool import DescriptorPool
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from codegen_mcp._proto.codegen.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    common_pb2,
    session_management_pb2,
    session_management_pb2_grpc,
    task_execution_pb2,
    task_execution_pb2_grpc,
    tools_pb2,
    worker_lifecycle_pb2,
    workspace_files_pb2,
    workspace_files_pb2_grpc,
)
from codegen_mcp.core.errors import NotFound
from codegen_mcp.engine.artifacts.base import Artifacts
from codegen_mcp.engine.base import Sessions, Tasks
from codegen_mcp.engine.checkpoints.base import Checkpoints
from codegen_mcp.server.admission import Admission
from codegen_mcp.server.artifact_service import ArtifactService
from codegen_mcp.server.caller_gate import CallerGate
from codegen_mcp.server.config import ServerConfig
from codegen_mcp.server.convert import MAX_MESSAGE_BYTES
from codegen_mcp.server.files_service import FilesService
from codegen_mcp.server.hooks import NoServerHooks, ServerHooks
from codegen_mcp.server.interceptors import EdgeInterceptor
from codegen_mcp.server.local_services import LocalServices
from codegen_mcp.server.revival import Revival
from codegen_mcp.server.session_service import SessionService
from codegen_mcp.server.task_service import TaskService

log = structlog.get_logger()

SERVICES = (
    "codegen.v1.SessionManagement",
    "codegen.v1.TaskExecution",
    "codegen.v1.ArtifactService",
    "codegen.v1.WorkspaceFiles",
)

OPTIONS = (
    # Two servers would share a port in silence.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # By default a burst above 1,000 calls is dropped as CANCELLED; admission answers in words.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # Clients that keep long streams alive may ping every ten seconds.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

NOTICE_S = 1.0
"""How long telling the health watchers may take: one that does not read must not stop a drain."""


class WorkerServer:
    """An async context manager: open means serving.

    Bootstrap opens it after the engine and closes it before; ``drain`` and ``stop`` come from a
    signal. Leaving the block without ``stop`` ends calls at once.
    """

    def __init__(
        self,
        sessions: Sessions,
        tasks: Tasks,
        config: ServerConfig,
        hooks: ServerHooks | None = None,
        *,
        artifacts: Artifacts | None = None,
        checkpoints: Checkpoints | None = None,
        gates: Sequence[aio.ServerInterceptor] = (),
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """Wire it.

        Args:
            sessions: Of the engine; ``tasks``, ``artifacts`` and ``checkpoints`` likewise.
            tasks: See above.
            config: Where it listens.
            hooks: Told of each call.
            artifacts: None serves none.
            checkpoints: None serves none.
            gates: What each call passes before its handler, in this order; their errors become
                statuses.
            credentials: For TLS; None serves plaintext.
        """
        self._gates = gates
        self._credentials = credentials
        self._config = config
        self._admission = Admission(config.max_in_flight)
        self._health = health.aio.HealthServicer()
        self._sessions = sessions
        self._tasks = tasks
        self._hooks = hooks or NoServerHooks()
        self._artifacts = artifacts
        self._checkpoints = checkpoints
        self._server: aio.Server | None = None
        self._gate: CallerGate | None = None
        self._capacity: Callable[..., worker_lifecycle_pb2.SessionCapacity] | None = None
        self.local: LocalServices | None = None
        """What it serves, for calls that come another way; None before start."""
        self.port = 0
        """The bound one; 0 before start and for a Unix socket."""

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return self._admission.in_flight

    @property
    def serving(self) -> bool:
        """Whether new work is taken (readiness)."""
        return self._server is not None and not self._admission.draining

    @property
    def draining(self) -> bool:
        """Whether new work is refused because the worker ends."""
        return self._admission.draining

    def capacity(self, *, measured: bool = True) -> worker_lifecycle_pb2.SessionCapacity:
        """Room, sessions, and what this worker enforces; only while it is open.

        Args:
            measured: Read what each session uses, which takes some files of the kernel for each.
        """
        assert self._capacity is not None
        return self._capacity(measured=measured)

    def session_metadata(self, session_id: str) -> dict[str, str]:
        """Return a session's metadata; empty when there is no such session."""
        try:
            return dict(self._sessions.metadata(session_id))
        except NotFound:
            return {}

    def serve_coordinator_alone(self) -> None:
        """Take no callers from now on but those who bear the dial token."""
        if self._gate is not None and self._config.dial_token:
            self._gate.required = True

    async def __aenter__(self) -> WorkerServer:
        revival = Revival(self._checkpoints)
        gate = CallerGate(
            self._sessions.ownership,
            self._config.dial_token,
            required=self._config.dial_token_required,
        )
        self._gate = gate
        edge = EdgeInterceptor(self._admission, self._hooks, gate, revival)
        server = aio.server(interceptors=[edge, *self._gates], options=OPTIONS)
        sessions = SessionService(
            self._sessions,
            self._tasks,
            self._config,
            checkpoints=self._checkpoints,
            artifacts=self._artifacts,
        )
        tasks = TaskService(self._tasks)
        artifacts = ArtifactService(self._artifacts)
        files = FilesService(self._sessions, gate, revival)
        session_management_pb2_grpc.add_SessionManagementServicer_to_server(sessions, server)
        task_execution_pb2_grpc.add_TaskExecutionServicer_to_server(tasks, server)
        artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
        workspace_files_pb2_grpc.add_WorkspaceFilesServicer_to_server(files, server)
        servicers = (
            (session_management_pb2, "SessionManagement", sessions),
            (task_execution_pb2, "TaskExecution", tasks),
            (artifact_service_pb2, "ArtifactService", artifacts),
            (workspace_files_pb2, "WorkspaceFiles", files),
        )
        self.local = LocalServices(
            {module.DESCRIPTOR.services_by_name[name]: one for module, name, one in servicers},
            edge,
            self._config.dial_token,
        )
        self._capacity = sessions.capacity
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, pool=reflected())
        try:
            address = self._config.address
            self.port = (
                server.add_insecure_port(address)
                if self._credentials is None
                else server.add_secure_port(address, self._credentials)
            )
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {self._config.address!r}: the port is taken or the address is "
                "not one of this machine; choose another port, or 0 for a free one"
            ) from error
        await server.start()
        self._server = server
        for name in SERVICES:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("server.listening", address=self._config.address, port=self.port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop(0)

    async def drain(self) -> None:
        """Fail readiness and refuse new work; what runs goes on. Idempotent."""
        if self._admission.draining:
            return
        self._admission.draining = True
        log.info("server.draining", in_flight=self.in_flight)
        try:
            async with asyncio.timeout(NOTICE_S):
                await self._health.enter_graceful_shutdown()
        except TimeoutError:
            log.warning("server.health_watcher_slow")

    async def stop(self, grace_s: float) -> None:
        """Drain, take no new call, give those under way so long, then end them. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        await self.drain()
        await server.stop(grace_s)
        log.info("server.stopped")

    async def wait_stopped(self) -> None:
        """Return when it has stopped."""
        if self._server is not None:
            await self._server.wait_for_termination()


def reflected() -> DescriptorPool:
    """Gather what reflection shows: our files, of our own pool, and the standard ones."""
    pool = DescriptorPool()
    for module in (
        common_pb2,
        tools_pb2,
        task_execution_pb2,
        worker_lifecycle_pb2,
        session_management_pb2,
        artifact_service_pb2,
        workspace_files_pb2,
        health_pb2,
        reflection_pb2,
    ):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
