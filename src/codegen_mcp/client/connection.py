"""One channel to a worker, its stubs, and the one place where calls fail."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
import grpc.aio

from codegen_mcp._proto.codegen.v1 import (
    session_management_pb2_grpc,
    task_execution_pb2_grpc,
    workspace_files_pb2_grpc,
)
from codegen_mcp.client.errors import from_rpc_error

T = TypeVar("T")

DEFAULT_ADDRESS = "127.0.0.1:50052"
MAX_MESSAGE = 4 * 1024 * 1024


def worker_address(address: str | None) -> str:
    """Return the given address, else CODEGEN_MCP_ADDRESS, else the default port on loopback."""
    return address or os.environ.get("CODEGEN_MCP_ADDRESS") or DEFAULT_ADDRESS


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn gRPC errors into the SDK's."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


class Connection:
    """A channel with typed stubs; ``close`` it, or use it as an async context manager."""

    def __init__(self, address: str | None = None) -> None:
        self.address = worker_address(address)
        self.channel = grpc.aio.insecure_channel(
            self.address,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
            ],
        )
        self.sessions = session_management_pb2_grpc.SessionManagementStub(self.channel)
        self.tasks = task_execution_pb2_grpc.TaskExecutionStub(self.channel)
        self.files = workspace_files_pb2_grpc.WorkspaceFilesStub(self.channel)

    async def call(self, awaitable: Awaitable[T]) -> T:
        """Await a unary call, errors mapped."""
        with mapped_errors():
            return await awaitable

    async def stream(self, messages: AsyncIterator[T]) -> AsyncIterator[T]:
        """Iterate over a stream, errors mapped."""
        with mapped_errors():
            async for message in messages:
                yield message

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
