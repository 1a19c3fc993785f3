"""Between the wire and the core: tasks and what happens to them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping

from codegen_mcp._proto.codegen.v1 import common_pb2, task_execution_pb2
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import KIB
from codegen_mcp.core.task import EndedBy, Stream, TaskStatus
from codegen_mcp.engine.base import (
    Constraints,
    OnDisconnect,
    OutputEvent,
    ProgressEvent,
    TaskMetadata,
    TaskSubmission,
    TaskView,
)
from codegen_mcp.server.convert import fill_peak, label, not_negative, refuse_if_set, variables
from codegen_mcp.server.convert_tools import tool_call
from codegen_mcp.server.status import MAX_TASK_TEXT_BYTES, cut, details_json, failure_of

_DECODER = codecs.getincrementaldecoder("utf-8")

MAX_LOG_BYTES = 64 * KIB
"""Of LogEntry.data."""

MAX_PROGRESS_BYTES = 1 * KIB
_NO_BOUNDS = Constraints()

LEVELS: Mapping[Stream, task_execution_pb2.LogEntry.Level.ValueType] = {
    Stream.STDOUT: task_execution_pb2.LogEntry.LEVEL_INFO,
    Stream.STDERR: task_execution_pb2.LogEntry.LEVEL_WARN,
}

ON_DISCONNECT: Mapping[int, OnDisconnect] = {
    task_execution_pb2.ON_DISCONNECT_UNSPECIFIED: OnDisconnect.CANCEL,
    task_execution_pb2.ON_DISCONNECT_CANCEL: OnDisconnect.CANCEL,
    task_execution_pb2.ON_DISCONNECT_DETACH: OnDisconnect.DETACH,
}

STATUSES: Mapping[TaskStatus, task_execution_pb2.TaskResult.Status.ValueType] = {
    TaskStatus.UNSPECIFIED: task_execution_pb2.TaskResult.STATUS_UNSPECIFIED,
    TaskStatus.SUCCESS: task_execution_pb2.TaskResult.STATUS_SUCCESS,
    TaskStatus.FAILURE: task_execution_pb2.TaskResult.STATUS_FAILURE,
    TaskStatus.TIMEOUT: task_execution_pb2.TaskResult.STATUS_TIMEOUT,
    TaskStatus.CANCELLED: task_execution_pb2.TaskResult.STATUS_CANCELLED,
}

ENDED_BY: Mapping[EndedBy | None, common_pb2.EndedBy.ValueType] = {
    None: common_pb2.ENDED_BY_UNSPECIFIED,
    EndedBy.EXIT: common_pb2.ENDED_BY_EXIT,
    EndedBy.SIGNAL: common_pb2.ENDED_BY_SIGNAL,
    EndedBy.TIMEOUT: common_pb2.ENDED_BY_TIMEOUT,
    EndedBy.MEMORY: common_pb2.ENDED_BY_MEMORY,
    EndedBy.PIDS: common_pb2.ENDED_BY_PIDS,
    EndedBy.DISK: common_pb2.ENDED_BY_DISK,
    EndedBy.CPU: common_pb2.ENDED_BY_CPU,
    EndedBy.OUTPUT: common_pb2.ENDED_BY_OUTPUT,
    EndedBy.CANCELLED: common_pb2.ENDED_BY_CANCELLED,
    EndedBy.WORKER_LOST: common_pb2.ENDED_BY_WORKER_LOST,
}


def submission(request: task_execution_pb2.TaskRequest) -> TaskSubmission:
    """Read a task.

    Raises:
        InvalidRequest: No tool, a negative bound, or a field is set that is not honoured.
    """
    env: dict[str, str] = {}
    secrets: tuple[str, ...] = ()
    if request.HasField("context"):
        context = request.context
        label("context.workspace_id", context.workspace_id)
        label("context.user_id", context.user_id)
        env = variables("context.env_vars", context.env_vars)
        secrets = tuple(context.secrets)
    bounds = _constraints(request.constraints) if request.HasField("constraints") else _NO_BOUNDS
    if request.on_disconnect not in ON_DISCONNECT:
        raise InvalidRequest(f"on_disconnect={request.on_disconnect!r} is not one of the enum")
    tool, arguments = tool_call(request.typed_request)
    return TaskSubmission(
        task_id=request.task_id,
        session_id=request.session_id,
        tool=tool,
        arguments=arguments,
        env=env,
        constraints=bounds,
        secrets=secrets,
        sequence=request.sequence,
        on_disconnect=ON_DISCONNECT[request.on_disconnect],
    )


def _constraints(bounds: task_execution_pb2.ExecutionConstraints) -> Constraints:
    refuse_if_set(
        "constraints.allowed_paths", bounds.allowed_paths, "a session reaches its workspace only"
    )
    return Constraints(
        timeout_s=not_negative("constraints.timeout_seconds", bounds.timeout_seconds),
        memory_bytes=not_negative("constraints.max_memory_bytes", bounds.max_memory_bytes),
        output_bytes=not_negative("constraints.max_output_bytes", bounds.max_output_bytes),
        allow_network=bounds.allow_network,
        allow_hosts=tuple(bounds.allow_hosts),
    )


def progress(event: ProgressEvent) -> task_execution_pb2.ProgressUpdate:
    """How far a task is; short, because a list of tasks has one of each."""
    return task_execution_pb2.ProgressUpdate(
        percent_complete=event.percent,
        stage=cut(event.stage, MAX_PROGRESS_BYTES),
        message=cut(event.message, MAX_PROGRESS_BYTES),
    )


def fill_metadata(facts: task_execution_pb2.ExecutionMetadata, value: TaskMetadata) -> None:
    """Facts of a finished task, into an empty message."""
    facts.start_time_ms = value.start_time_ms
    facts.end_time_ms = value.end_time_ms
    facts.duration_ms = value.duration_ms
    fill_peak(facts.peak_usage, value.peak)
    facts.exit_code = value.exit_code
    facts.ended_by = ENDED_BY[value.ended_by]
    facts.remedy = value.remedy
    facts.signal = value.signal
    facts.stdout_bytes = value.stdout_bytes
    facts.stderr_bytes = value.stderr_bytes
    facts.stdout_omitted_bytes = value.stdout_omitted
    facts.stderr_omitted_bytes = value.stderr_omitted
    for limit in value.limits_hit:
        facts.limits_hit.append(ENDED_BY[limit])
    for one in value.network_denied:
        facts.network_denied.add(host=one.host, port=one.port, reason=one.reason, count=one.count)


def task_error(error: Exception) -> task_execution_pb2.TaskError:
    """The end of a task whose tool could not do its part."""
    failure = failure_of(error, text_bytes=MAX_TASK_TEXT_BYTES)
    return task_execution_pb2.TaskError(
        code=failure.code.name,
        message=failure.message,
        details=details_json(failure),
        retriable=failure.retriable,
    )


def view(value: TaskView) -> task_execution_pb2.StatusResponse:
    """A task as it is now."""
    return task_execution_pb2.StatusResponse(
        task_id=value.task_id,
        status=STATUSES[value.status],
        progress=None if value.progress is None else progress(value.progress),
        elapsed_ms=value.elapsed_ms,
        state=value.state,
        ended_by=ENDED_BY[value.ended_by],
        tool=value.tool,
        session_id=value.session_id,
        submitted_at_ms=value.submitted_at_ms,
        stdout_bytes=value.stdout_bytes,
        stderr_bytes=value.stderr_bytes,
    )


class LogDecoder:
    """Output events as log entries; a character that two of them share is whole in the second."""

    def __init__(self) -> None:
        self._decoders: dict[Stream, codecs.IncrementalDecoder] = {}
        self._ends: dict[Stream, int] = {}
        self._last_ms = 0

    def entries(self, event: OutputEvent) -> Iterator[task_execution_pb2.LogEntry]:
        """Entries of at most MAX_LOG_BYTES; joined they are the event's bytes."""
        self._last_ms = event.timestamp_ms
        if event.stream not in self._decoders:
            self._decoders[event.stream] = _DECODER("replace")
        for start in range(0, len(event.data), MAX_LOG_BYTES):
            piece = event.data[start : start + MAX_LOG_BYTES]
            yield self._entry(event.stream, event.offset + start, piece, final=False)
        self._ends[event.stream] = event.offset + len(event.data)

    def rest(self) -> Iterator[task_execution_pb2.LogEntry]:
        """What a stream ended in the middle of, as an entry without data."""
        for stream in self._decoders:
            entry = self._entry(stream, self._ends[stream], b"", final=True)
            if entry.message:
                yield entry

    def _entry(
        self, stream: Stream, offset: int, data: bytes, *, final: bool
    ) -> task_execution_pb2.LogEntry:
        return task_execution_pb2.LogEntry(
            level=LEVELS[stream],
            message=self._decoders[stream].decode(data, final),
            timestamp_ms=self._last_ms,
            source=stream.value,
            data=data,
            offset=offset,
        )
