"""What a coordinator knows of a worker from its registration and heartbeats."""

from __future__ import annotations

import asyncio

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.worker_view import Load, Registration

MOST_FACTS = 200
"""Of a worker's metadata."""


class Registered:
    """One start of one worker that registered here."""

    def __init__(self, owner: Owner, *, session_id: str) -> None:
        self.owner = owner
        self.session_id = session_id
        """Of the registration; only this worker was told it."""
        self.connection = ""
        """On which it registered last."""
        self.silent = False
        """It has no start_id: a worker of the plain protocol, which never says what it holds
        before its first heartbeat, and never says hello."""
        self.adopted = False
        """Whether that first heartbeat was taken in."""
        self.heard = asyncio.Event()
        """Set with the first heartbeat."""

    def is_meant(self, request: pb.HeartbeatRequest) -> bool:
        """Whether a heartbeat is of this registration."""
        return request.session_id in ("", self.session_id) and (
            request.incarnation in (0, self.owner.incarnation)
        )


def registration_of(request: pb.RegisterRequest) -> Registration:
    """Read what a worker says of itself."""
    able = request.capabilities
    return Registration(
        worker_id=request.worker_id,
        start_id=request.start_id,
        max_sessions=max(0, able.max_sessions),
        # The tools of the plain protocol have dots in their names.
        tools=frozenset(able.supported_tools)
        | frozenset(name.replace(".", "_") for name in able.supported_tools),
        languages=frozenset(able.languages),
        store_id=request.store_id,
        version=request.version,
        grpc_address=request.grpc_address,
        dial_token=request.dial_token,
        metadata=dict(list(able.metadata.items())[:MOST_FACTS]),
    )


def load_of(request: pb.HeartbeatRequest) -> Load | None:
    """Read how full a worker says it is; None where it does not say."""
    if not request.HasField("capacity"):
        return None
    state = request.status.state
    return Load(
        total=max(0, request.capacity.total_sessions),
        active=max(0, request.capacity.active_sessions),
        draining=state == pb.WorkerStatus.STATE_DRAINING,
        healthy=state != pb.WorkerStatus.STATE_UNHEALTHY,
        running=max(0, request.status.active_tasks),
    )
