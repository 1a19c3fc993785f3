"""What those who follow a task are told when its worker is stopped or killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from codegen_mcp._proto.codegen.v1 import common_pb2 as common
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sm
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as te
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.client.connection import Connection
from codegen_mcp.testing.worker import start_worker_process, state_directory

SLEEP = "print('begun', flush=True)\nimport time\ntime.sleep(300)"


def run_request(session: str, task_id: str, code: str, sequence: int) -> te.TaskRequest:
    tool = tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))
    return te.TaskRequest(
        task_id=task_id, session_id=session, typed_request=tool, sequence=sequence
    )


async def created(connection: Connection) -> str:
    return (await connection.sessions.CreateSession(sm.CreateSessionRequest())).session_id


async def end_of(connection: Connection, request: te.TaskRequest) -> te.TaskResult:
    messages = [message async for message in connection.tasks.ExecuteTask(request)]
    assert [message.WhichOneof("payload") for message in messages[-1:]] == ["result"]
    return messages[-1].result


async def stopped_worker(state: Path) -> te.TaskResult:
    """Stop a worker under a running task; return what its follower was told."""
    worker = await start_worker_process(state, drain_grace_s=0)
    try:
        async with Connection(worker.address) as connection:
            session = await created(connection)
            stream = connection.tasks.ExecuteTask(run_request(session, "t", SLEEP, 1))
            async for message in stream:
                if message.log.data == b"begun\n":
                    worker.process.terminate()
            return message.result
    finally:
        assert await worker.stop() == 0


async def test_a_follower_is_told_that_the_worker_shuts_down() -> None:
    async with asyncio.timeout(60), state_directory() as state:
        result = await stopped_worker(state)
    assert result.status == te.TaskResult.STATUS_CANCELLED
    assert result.metadata.ended_by == common.ENDED_BY_CANCELLED
    assert "shutting down" in result.metadata.remedy
    assert result.typed_response.run_python.stdout == "begun\n"


async def test_after_a_kill_answers_are_kept_and_what_ran_is_reported_lost() -> None:
    async with asyncio.timeout(90), state_directory() as state:
        worker = await start_worker_process(state)
        async with Connection(worker.address) as connection:
            session = await created(connection)
            done = await end_of(connection, run_request(session, "done", "print(42)", 1))
            stream = connection.tasks.ExecuteTask(run_request(session, "lost", SLEEP, 2))
            await stream.read()
            await worker.kill()
            with pytest.raises(grpc.aio.AioRpcError):
                await stream.read()

        worker = await start_worker_process(state)
        try:
            async with Connection(worker.address) as connection:
                again = await end_of(connection, run_request(session, "done", "print(42)", 1))
                assert again == done
                status = te.StatusRequest(session_id=session, task_id="lost")
                view = await connection.tasks.GetTaskStatus(status)
                assert view.status == te.TaskResult.STATUS_FAILURE
                lost = await end_of(connection, run_request(session, "lost", SLEEP, 2))
                assert lost.metadata.ended_by == common.ENDED_BY_WORKER_LOST
                assert "new task_id" in lost.metadata.remedy
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await end_of(connection, run_request(session, "other", "print(1)", 2))
                assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
                fresh = await end_of(connection, run_request(session, "next", "print(1)", 3))
                assert fresh.status == te.TaskResult.STATUS_SUCCESS
        finally:
            await worker.stop()
