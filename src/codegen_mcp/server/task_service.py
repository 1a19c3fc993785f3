"""TaskExecution: tasks over the wire."""

from __future__ import annotations

import json

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2_grpc, tools_pb2
from codegen_mcp.engine.base import ErrorEvent, OutputEvent, ProgressEvent, ResultEvent, Tasks
from codegen_mcp.server import convert_tasks as convert
from codegen_mcp.server.closing import closing
from codegen_mcp.server.convert import not_negative
from codegen_mcp.server.convert_tools import fill_response
from codegen_mcp.server.interceptors import Context
from codegen_mcp.server.parts import write_part
from codegen_mcp.server.revival import REVIVED, words
from codegen_mcp.tools.run_output import RunResult


class TaskService(task_execution_pb2_grpc.TaskExecutionServicer):
    """Answers for the tasks of one worker."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._tools = pb.ListToolsResponse(
            tools=[
                pb.ToolInfo(
                    name=spec.name,
                    title=spec.title,
                    description=spec.description,
                    arguments_schema_json=json.dumps(spec.arguments.model_json_schema()),
                    result_schema_json=json.dumps(spec.result.model_json_schema()),
                    runs_code=spec.runs_code,
                    read_only=spec.read_only,
                    destructive=spec.destructive,
                    idempotent=spec.idempotent,
                )
                for spec in tasks.specs
            ]
        )

    async def ExecuteTask(self, request: pb.TaskRequest, context: Context) -> pb.TaskResponse:  # type: ignore[override]  # the last message; others are written
        """Run one tool; a caller that leaves detaches, and the engine knows what that means."""
        task_id = await self._tasks.submit(convert.submission(request))
        if request.sequence:
            # Whoever keeps tasks in order may send the next one now.
            await context.send_initial_metadata(())
        return await self._stream(task_id, request.session_id, context, asked=request.typed_request)

    async def AttachTask(self, request: pb.AttachTaskRequest, context: Context) -> pb.TaskResponse:  # type: ignore[override]  # the last message; others are written
        """Join a task's stream."""
        return await self._stream(
            request.task_id,
            request.session_id,
            context,
            stdout_offset=not_negative("stdout_offset", request.stdout_offset) or 0,
            stderr_offset=not_negative("stderr_offset", request.stderr_offset) or 0,
        )

    async def _stream(
        self,
        task_id: str,
        session_id: str,
        context: Context,
        *,
        asked: tools_pb2.ToolRequest | None = None,
        stdout_offset: int | None = None,
        stderr_offset: int | None = None,
    ) -> pb.TaskResponse:
        """Write all messages but the last, which is returned."""
        logs = convert.LogDecoder()
        restored = REVIVED.get()
        if restored is not None:
            told = ProgressEvent(percent=0, stage="restored", message=words(restored))
            update = convert.progress(told)
            await write_part(context, pb.TaskResponse(task_id=task_id, progress=update))
        async with closing(
            self._tasks.events(
                task_id, session_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset
            )
        ) as events:
            async for event in events:
                if isinstance(event, OutputEvent):
                    for entry in logs.entries(event):
                        await write_part(context, pb.TaskResponse(task_id=task_id, log=entry))
                elif isinstance(event, ProgressEvent):
                    update = convert.progress(event)
                    await write_part(context, pb.TaskResponse(task_id=task_id, progress=update))
                else:
                    for entry in logs.rest():
                        await write_part(context, pb.TaskResponse(task_id=task_id, log=entry))
                    return ending(task_id, event, asked)
        raise RuntimeError(f"the events of task {task_id!r} have no end")

    async def CancelTask(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        """Stop a task."""
        cancelled, state = await self._tasks.cancel(
            request.task_id, request.session_id, request.reason
        )
        return pb.CancelResponse(cancelled=cancelled, state=state)

    async def GetTaskStatus(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        """A task as it is now."""
        return convert.view(self._tasks.status(request.task_id, request.session_id))

    async def ListTasks(
        self, request: pb.ListTasksRequest, context: Context
    ) -> pb.ListTasksResponse:
        """The session's tasks, newest first."""
        return pb.ListTasksResponse(tasks=map(convert.view, self._tasks.list(request.session_id)))

    async def ListTools(
        self, request: pb.ListToolsRequest, context: Context
    ) -> pb.ListToolsResponse:
        """Every tool with its schemas."""
        return self._tools


def ending(
    task_id: str, event: ResultEvent | ErrorEvent, request: tools_pb2.ToolRequest | None
) -> pb.TaskResponse:
    """The last message of a stream."""
    if isinstance(event, ErrorEvent):
        return pb.TaskResponse(task_id=task_id, error=convert.task_error(event.error))
    response = pb.TaskResponse(task_id=task_id)
    result = response.result
    try:
        if event.value is not None:
            fill_response(result.typed_response, event, request)
    except Exception as error:
        return pb.TaskResponse(task_id=task_id, error=convert.task_error(error))
    result.status = convert.STATUSES[event.status]
    result.artifacts.extend(event.artifacts)
    facts = result.metadata
    convert.fill_metadata(facts, event.metadata)
    if isinstance(event.value, RunResult):
        # What the answer leaves out is the answer's to say.
        facts.stdout_omitted_bytes = event.value.stdout_omitted_bytes
        facts.stderr_omitted_bytes = event.value.stderr_omitted_bytes
    return response
