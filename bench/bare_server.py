"""A grpc.aio server that answers with messages of the worker's kinds and does no work."""

from __future__ import annotations

import asyncio

import grpc.aio

from codegen_mcp._proto.codegen.v1 import (
    common_pb2,
    session_management_pb2,
    session_management_pb2_grpc,
    task_execution_pb2,
    task_execution_pb2_grpc,
    tools_pb2,
)

PAYLOAD = "x" * 4096


class Sessions(session_management_pb2_grpc.SessionManagementServicer):
    async def GetSessionStatus(self, request, context):
        return session_management_pb2.SessionStatusResponse(
            session_id=request.session_id,
            info=common_pb2.SessionInfo(session_id=request.session_id),
        )


class Tasks(task_execution_pb2_grpc.TaskExecutionServicer):
    async def ExecuteTask(self, request, context):
        kind = request.typed_request.WhichOneof("request")
        response = tools_pb2.ToolResponse()
        if kind == "echo":
            response.echo.message = request.typed_request.echo.message
        elif kind == "fs_read":
            response.fs_read.contents = PAYLOAD
            response.fs_read.data = PAYLOAD.encode()
        else:
            response.fs_write.bytes_written = 4096
        result = task_execution_pb2.TaskResult(status=1, typed_response=response)
        await context.write(task_execution_pb2.TaskResponse(task_id="t", result=result))


async def main() -> None:
    server = grpc.aio.server()
    session_management_pb2_grpc.add_SessionManagementServicer_to_server(Sessions(), server)
    task_execution_pb2_grpc.add_TaskExecutionServicer_to_server(Tasks(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"port {port}", flush=True)
    await server.wait_for_termination()


asyncio.run(main())
