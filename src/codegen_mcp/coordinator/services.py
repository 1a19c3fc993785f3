"""The four services that workers have too, over the gateway: so a platform sees one address.

Every method is served from one table (``methods``): what a worker answers is passed on as it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import Message

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.base import Gateway
from codegen_mcp.coordinator.methods import DOWNLOAD, TASKS, UNARY, UPLOAD, Method
from codegen_mcp.coordinator.principal import caller
from codegen_mcp.coordinator.refusals import ended_early
from codegen_mcp.server.interceptors import Context
from codegen_mcp.server.parts import write_part

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Any], Awaitable[Any]]

SERVICES = (
    "codegen.v1.SessionManagement",
    "codegen.v1.TaskExecution",
    "codegen.v1.ArtifactService",
    "codegen.v1.WorkspaceFiles",
)
_LAST = frozenset({"result", "error"})


def routed_services(gateway: Gateway) -> Sequence[grpc.GenericRpcHandler]:
    """Return the handlers of every method; add them to a server whose edge names the caller."""
    table: dict[str, Handler] = {}
    for name, method in UNARY.items():
        table[name] = _handler(grpc.unary_unary_rpc_method_handler, method, _unary(gateway, name))
    for name, method in TASKS.items():
        table[name] = _handler(grpc.unary_stream_rpc_method_handler, method, _tasks(gateway, name))
    table["WorkspaceFiles/Upload"] = _handler(
        grpc.stream_unary_rpc_method_handler, UPLOAD, _upload(gateway)
    )
    table["WorkspaceFiles/Download"] = _handler(
        grpc.unary_stream_rpc_method_handler, DOWNLOAD, _download(gateway)
    )
    return [
        grpc.method_handlers_generic_handler(
            service,
            {
                name.partition("/")[2]: handler
                for name, handler in table.items()
                if f"codegen.v1.{name.partition('/')[0]}" == service
            },
        )
        for service in SERVICES
    ]


def _handler(make: Callable[..., Handler], method: Method, behaviour: Behaviour) -> Handler:
    return make(
        behaviour,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )


def _unary(gateway: Gateway, name: str) -> Behaviour:
    async def call(request: Message, context: Context) -> Message:
        return await gateway.unary(caller(), name, request)

    return call


def _tasks(gateway: Gateway, name: str) -> Behaviour:
    async def call(
        request: tasks_pb.TaskRequest | tasks_pb.AttachTaskRequest, context: Context
    ) -> tasks_pb.TaskResponse:
        """Write all messages but the last, which is returned (see ``EdgeInterceptor``)."""
        stream = cast("Any", gateway.tasks(caller(), name, request))
        async with aclosing(stream):
            async for message in stream:
                if message.WhichOneof("payload") in _LAST:
                    return cast("tasks_pb.TaskResponse", message)
                await write_part(context, message)
        raise ended_early("of this task")

    return call


def _upload(gateway: Gateway) -> Behaviour:
    async def call(
        chunks: AsyncIterator[files_pb.UploadChunk], context: Context
    ) -> files_pb.UploadSummary:
        return await gateway.upload(caller(), chunks)

    return call


def _download(gateway: Gateway) -> Behaviour:
    async def call(request: files_pb.DownloadRequest, context: Context) -> files_pb.DownloadChunk:
        stream = cast("Any", gateway.download(caller(), request))
        async with aclosing(stream):
            async for chunk in stream:
                if chunk.WhichOneof("part") == "summary":
                    return cast("files_pb.DownloadChunk", chunk)
                await write_part(context, chunk)
        raise ended_early("of this file")

    return call
