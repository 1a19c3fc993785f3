"""Run one tool and follow its stream to the end."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from codegen_mcp._proto.codegen.v1 import common_pb2, task_execution_pb2, tools_pb2
from codegen_mcp.client.connection import Connection
from codegen_mcp.client.errors import SandboxException, make_error
from codegen_mcp.client.results import CommandResult, EndedBy, NetworkDenial

OutputHandler = Callable[[str], Awaitable[None] | None]
"""Called with each piece of text as it is printed; may be a coroutine function."""


async def _hand_over(handler: OutputHandler | None, text: str) -> None:
    if handler is not None and text:
        result = handler(text)
        if inspect.isawaitable(result):
            await result


def _task_error(error: task_execution_pb2.TaskError) -> SandboxException:
    try:
        details = json.loads(error.details) if error.details else {}
    except ValueError:
        details = {}
    return make_error(
        error.code,
        error.message,
        reason=str(details.get("reason", "")),
        metadata={str(k): str(v) for k, v in dict(details.get("metadata", {})).items()},
    )


class TaskRunner:
    """Sends tools to one session."""

    def __init__(self, connection: Connection, session_id: str) -> None:
        self._connection = connection
        self.session_id = session_id

    async def execute(
        self, request: tools_pb2.ToolRequest, **options: Any
    ) -> task_execution_pb2.TaskResult:
        """Do as ``follow``; returns the result alone."""
        return (await self.follow(request, **options)).result

    async def follow(
        self,
        request: tools_pb2.ToolRequest,
        *,
        envs: Mapping[str, str] | None = None,
        timeout: float | None = None,
        on_stdout: OutputHandler | None = None,
        on_stderr: OutputHandler | None = None,
        on_progress: OutputHandler | None = None,
        allow_network: bool = False,
        allow_hosts: Sequence[str] = (),
        secrets: Sequence[str] = (),
    ) -> task_execution_pb2.TaskResponse:
        """Run a tool; returns the last message of its stream, which has the result.

        Raises:
            SandboxException: The tool could not do its part, or the call failed.
        """
        message = task_execution_pb2.TaskRequest(
            session_id=self.session_id,
            typed_request=request,
            context=task_execution_pb2.TaskContext(env_vars=envs or {}, secrets=secrets),
            constraints=task_execution_pb2.ExecutionConstraints(
                timeout_seconds=_whole_seconds(timeout),
                allow_network=allow_network,
                allow_hosts=allow_hosts,
            ),
        )
        stream = self._connection.stream(aiter(self._connection.tasks.ExecuteTask(message)))
        async with aclosing(stream) as responses:  # type: ignore[type-var]
            async for response in responses:
                kind = response.WhichOneof("payload")
                if kind == "log":
                    handler = on_stderr if response.log.source == "stderr" else on_stdout
                    await _hand_over(handler, response.log.message)
                elif kind == "progress":
                    await _hand_over(on_progress, response.progress.message)
                elif kind == "result":
                    return response
                elif kind == "error":
                    raise _task_error(response.error)
        raise make_error("INTERNAL", "the worker ended the stream without a result")

    async def call(self, name: str, arguments: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Run a tool by name with plain arguments; returns its plain result."""
        request = tools_pb2.ToolRequest(
            call=tools_pb2.ToolCall(name=name, arguments_json=json.dumps(arguments))
        )
        result = await self.execute(request, **options)
        if not result.typed_response.HasField("call"):
            raise make_error("CANCELLED", result.metadata.remedy or f"{name} was ended early")
        value = json.loads(result.typed_response.call.result_json)
        assert isinstance(value, dict)
        return value


def _whole_seconds(timeout: float | None) -> int:
    """Round a timeout up to whole seconds, the unit of the wire; None and 0 are the default."""
    if timeout is None:
        return 0
    whole = int(timeout)
    return whole if whole == timeout else whole + 1


def ended_by(value: int) -> EndedBy:
    """Name an EndedBy of the wire; one that this SDK does not know is the empty string."""
    try:
        name = common_pb2.EndedBy.Name(value)  # type: ignore[arg-type]  # unknown values raise
    except ValueError:
        return ""
    short = name.removeprefix("ENDED_BY_").lower()
    return "" if short == "unspecified" else short  # type: ignore[return-value]  # of the Literal


def command_result(
    response: task_execution_pb2.TaskResponse, *, stdout: str, stderr: str
) -> CommandResult:
    """Combine a result's output with its facts."""
    facts = response.result.metadata
    return CommandResult(
        stdout=stdout,
        stderr=stderr,
        exit_code=facts.exit_code,
        ended_by=ended_by(facts.ended_by),
        signal=facts.signal,
        remedy=facts.remedy,
        limits_hit=tuple(ended_by(hit) for hit in facts.limits_hit),
        duration_ms=facts.duration_ms,
        peak_memory_bytes=facts.peak_usage.memory_bytes,
        stdout_bytes=facts.stdout_bytes,
        stderr_bytes=facts.stderr_bytes,
        stdout_omitted=facts.stdout_omitted_bytes,
        stderr_omitted=facts.stderr_omitted_bytes,
        task_id=response.task_id,
        artifacts=tuple(response.result.artifacts),
        network_denied=tuple(
            NetworkDenial(host=one.host, port=one.port, reason=one.reason, count=one.count)
            for one in facts.network_denied
        ),
    )
