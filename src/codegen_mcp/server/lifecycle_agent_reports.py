"""What a worker says of itself to a coordinator."""

from __future__ import annotations

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.engine.base import Ownership
from codegen_mcp.server.app import WorkerServer
from codegen_mcp.server.foreign_ids import ForeignIds
from codegen_mcp.server.lifecycle_config import LifecycleConfig


class Reports:
    """Writes registrations and heartbeats."""

    def __init__(
        self, config: LifecycleConfig, server: WorkerServer, ownership: Ownership, ids: ForeignIds
    ) -> None:
        self._config = config
        self._server = server
        self._ownership = ownership
        self._ids = ids

    async def registration(self) -> pb.RegisterRequest:
        """Say who this is, what it has, and what it holds.

        Raises:
            StoreUnavailable: It cannot be told whose checkpoints this worker can restore.
        """
        config, capacity = self._config, self._server.capacity()
        limits = config.limits
        return pb.RegisterRequest(
            worker_id=config.worker_id,
            auth_token=config.auth_token,
            capabilities=pb.WorkerCapabilities(
                supported_tools=config.tools,
                languages=config.languages,
                max_sessions=capacity.total_sessions,
                metadata=config.facts,
            ),
            limits=None
            if limits is None
            else common_pb2.ResourceLimits(
                max_memory_per_session=limits.memory_bytes,
                max_disk_per_session=limits.disk_bytes,
                max_cpu_millicores=limits.cpu_millicores,
                max_concurrent_tasks=limits.concurrent_tasks,
            ),
            version=config.version,
            grpc_address=config.grpc_address,
            dial_token=config.dial_token,
            start_id=config.start_id,
            store_id=await config.store_id(),
            sessions=self.sessions(),
        )

    def sessions(self) -> list[pb.SessionEpoch]:
        """Every session that it holds, by the coordinator's ids."""
        return [
            pb.SessionEpoch(session_id=self._ids.theirs(session_id), epoch=epoch)
            for session_id, epoch in self._ownership.held().items()
        ]

    def heartbeat(self, registration: pb.RegisterResponse) -> pb.HeartbeatRequest:
        """Say that it lives, and how full it is."""
        capacity = self._server.capacity()
        usage = common_pb2.ResourceUsage()
        tasks = 0
        for info in capacity.sessions:
            info.session_id = self._ids.theirs(info.session_id)
            tasks += info.active_tasks
            usage.memory_bytes += info.usage.memory_bytes
            usage.cpu_millicores += info.usage.cpu_millicores
            usage.disk_bytes += info.usage.disk_bytes
        state = pb.WorkerStatus.STATE_BUSY if tasks else pb.WorkerStatus.STATE_IDLE
        if self._server.draining:
            state = pb.WorkerStatus.STATE_DRAINING
        return pb.HeartbeatRequest(
            worker_id=self._config.worker_id,
            session_id=registration.session_id,
            status=pb.WorkerStatus(state=state, active_tasks=tasks, current_usage=usage),
            capacity=capacity,
            incarnation=registration.incarnation,
        )
