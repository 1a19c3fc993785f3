"""One channel to a worker, its stubs, and the one place where calls fail."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
import grpc.aio

from codegen_mcp._proto.codegen.v1 import (
    artifact_service_pb2_grpc,
    session_management_pb2_grpc,
    task_execution_pb2_grpc,
    workspace_files_pb2_grpc,
)
from codegen_mcp.client.access import access_token, bearing, open_channel
from codegen_mcp.client.errors import from_rpc_error, make_error

T = TypeVar("T")

DEFAULT_ADDRESS = "127.0.0.1:50052"
MAX_MESSAGE = 4 * 1024 * 1024


def worker_address(address: str | None) -> str:
    """Return the given address, else CODEGEN_MCP_ADDRESS, else the default port on loopback."""
    return address or os.environ.get("CODEGEN_MCP_ADDRESS") or DEFAULT_ADDRESS


class Connection:
    """A channel with typed stubs; ``close`` it, or use it as an async context manager."""

    def __init__(self, address: str | None = None) -> None:
        self.address = worker_address(address)
        self.channel = open_channel(
            self.address,
            [
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
            ],
        )
        token = access_token()
        stubs = bearing(self.channel, token) if token else self.channel
        self._sessions = session_management_pb2_grpc.SessionManagementStub(stubs)
        self._tasks = task_execution_pb2_grpc.TaskExecutionStub(stubs)
        self._files = workspace_files_pb2_grpc.WorkspaceFilesStub(stubs)
        self._artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(stubs)
        self._closed = False

    @property
    def sessions(self) -> session_management_pb2_grpc.SessionManagementAsyncStub:
        """Stub; raises StateException once closed, as those below do."""
        self._check_open()
        return self._sessions

    @property
    def tasks(self) -> task_execution_pb2_grpc.TaskExecutionAsyncStub:
        """Stub."""
        self._check_open()
        return self._tasks

    @property
    def files(self) -> workspace_files_pb2_grpc.WorkspaceFilesAsyncStub:
        """Stub."""
        self._check_open()
        return self._files

    @property
    def artifacts(self) -> artifact_service_pb2_grpc.ArtifactServiceAsyncStub:
        """Stub."""
        self._check_open()
        return self._artifacts

    def _check_open(self) -> None:
        if self._closed:
            raise make_error(
                "FAILED_PRECONDITION",
                "this sandbox object is closed; create another, or connect to the session by its "
                "sandbox_id if it was not killed",
                reason="CLOSED",
            )

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        """Turn gRPC errors into the SDK's."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address) from None

    async def call(self, awaitable: Awaitable[T]) -> T:
        """Await a unary call, errors mapped."""
        with self._mapped_errors():
            return await awaitable

    async def stream(self, messages: AsyncIterator[T]) -> AsyncIterator[T]:
        """Iterate over a stream, errors mapped."""
        with self._mapped_errors():
            async for message in messages:
                yield message

    async def close(self) -> None:
        """Close the channel."""
        self._closed = True
        await self.channel.close()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
