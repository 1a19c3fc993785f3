"""Lines of a session's ``tasks.jsonl``: what was admitted, and how it ended.

The first line names the format. A ``start`` line is written before a task may do anything, an
``end`` line before anybody is told its end; a start without an end is a task that was under way
when the worker was lost.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from codegen_mcp.core.errors import Corrupt, InvalidRequest, WorkerError
from codegen_mcp.core.limits import Usage
from codegen_mcp.core.network import NetworkDenial
from codegen_mcp.core.task import EndedBy, TaskStatus
from codegen_mcp.engine.base import ErrorEvent, ResultEvent, TaskMetadata
from codegen_mcp.engine.task import TaskEnd, TaskFacts
from codegen_mcp.tools.base import ToolModel

FORMAT = 1
DAMAGED = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(OverflowError, RecursionError, Corrupt, InvalidRequest),
)
"""What reading a line raises that is none of ours."""
_dumps = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
_METADATA_NUMBERS = (
    "start_time_ms",
    "end_time_ms",
    "duration_ms",
    "exit_code",
    "signal",
    "stdout_bytes",
    "stderr_bytes",
    "stdout_omitted",
    "stderr_omitted",
)
_USAGE_NUMBERS = tuple(field.name for field in dataclasses.fields(Usage))
_NO_USAGE = Usage()


def header_line(last_sequence: int) -> bytes:
    """Write the first line; numbers up to ``last_sequence`` are used."""
    return f'{{"format":{FORMAT},"last_sequence":{last_sequence}}}\n'.encode()


def start_line(facts: TaskFacts) -> bytes:
    """Write that a task was admitted."""
    return f'{{"start":{_facts(facts)}}}\n'.encode()


def end_line(facts: TaskFacts, end: TaskEnd, logged: tuple[int, int]) -> bytes:
    """Write how a task ended; ``logged`` is how much of stdout and stderr readers could have.

    Raises:
        ValueError: The tool's result cannot be written as JSON.
    """
    head = f'{{"end":{_facts(facts)}'
    if isinstance(end, ErrorEvent):
        return f'{head},"error":{_dumps(_error(end.error))}}}\n'.encode()
    head += f',"status":{end.status:d},"metadata":{{{_metadata(end.metadata)}}}'
    if any(logged):
        head += f',"logged":[{logged[0]},{logged[1]}]'
    if end.artifacts:
        head += f',"artifacts":{_dumps(list(end.artifacts))}'
    if end.value is None:
        return head.encode() + b"}\n"
    # The value is spliced in as its model writes it: bytes are base64 there.
    value = end.value.model_dump_json().encode()
    return b"".join((head.encode(), b',"value":', value, b"}\n"))


def read_header(fields: object) -> int:
    """Return the last sequence that the header names.

    Raises:
        Corrupt: It is none, or of a newer format.
    """
    version = fields.get("format") if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or not isinstance(version, int):
        raise Corrupt("the task journal does not begin with its format")
    if version > FORMAT:
        raise Corrupt(
            f"the task journal has format {version}, this version reads up to {FORMAT}; "
            "start the version that wrote it, or destroy the session"
        )
    return int(fields.get("last_sequence", 0))


def read_facts(session_id: str, fields: Mapping[str, Any]) -> TaskFacts:
    """Read what a start or end line says of its task; KeyError and ValueError when it is none."""
    return TaskFacts(
        task_id=str(fields["end"] if "end" in fields else fields["start"]),
        session_id=session_id,
        tool=str(fields["tool"]),
        sequence=int(fields["seq"]),
        fingerprint=str(fields["fp"]),
        submitted_at_ms=int(fields["at"]),
    )


def read_end(fields: Mapping[str, Any], model: type[ToolModel] | None) -> TaskEnd:
    """Read an end line; without a model (the tool is gone) there is no value.

    Raises:
        KeyError, ValueError, TypeError: It is no end line.
    """
    if "error" in fields:
        return ErrorEvent(error=_read_error(fields["error"]))
    value = None
    if model is not None and "value" in fields:
        value = model.model_validate_json(_dumps(fields["value"]))
    return ResultEvent(
        status=TaskStatus(fields["status"]),
        tool=str(fields["tool"]),
        value=value,
        metadata=_read_metadata(fields["metadata"]),
        artifacts=tuple(fields.get("artifacts", ())),
    )


def _facts(facts: TaskFacts) -> str:
    """Write an id and what follows it; ids, names and digests have nothing to escape."""
    return (
        f'"{facts.task_id}","tool":"{facts.tool}","seq":{facts.sequence},'
        f'"fp":"{facts.fingerprint}","at":{facts.submitted_at_ms}'
    )


def _metadata(metadata: TaskMetadata) -> str:
    parts = [f'"ended_by":{metadata.ended_by:d}']
    parts.append(
        f'"start_time_ms":{metadata.start_time_ms},"end_time_ms":{metadata.end_time_ms},'
        f'"duration_ms":{metadata.duration_ms}'
    )
    if metadata.exit_code or metadata.signal:
        parts.append(f'"exit_code":{metadata.exit_code},"signal":{metadata.signal}')
    if metadata.stdout_bytes or metadata.stderr_bytes:
        parts.append(
            f'"stdout_bytes":{metadata.stdout_bytes},"stderr_bytes":{metadata.stderr_bytes},'
            f'"stdout_omitted":{metadata.stdout_omitted},'
            f'"stderr_omitted":{metadata.stderr_omitted}'
        )
    if metadata.remedy:
        parts.append(f'"remedy":{_dumps(metadata.remedy)}')
    if metadata.limits_hit:
        parts.append(f'"limits_hit":{_dumps([int(limit) for limit in metadata.limits_hit])}')
    if metadata.network_denied:
        denied = [dataclasses.asdict(one) for one in metadata.network_denied]
        parts.append(f'"network_denied":{_dumps(denied)}')
    if metadata.peak != _NO_USAGE:
        peak = {name: getattr(metadata.peak, name) for name in _USAGE_NUMBERS}
        parts.append(f'"peak":{_dumps(peak)}')
    return ",".join(parts)


def _read_metadata(fields: Mapping[str, Any]) -> TaskMetadata:
    numbers = {name: int(fields[name]) for name in _METADATA_NUMBERS if name in fields}
    peak = fields.get("peak", {})
    return TaskMetadata(
        ended_by=EndedBy(fields["ended_by"]),
        remedy=str(fields.get("remedy", "")),
        limits_hit=tuple(EndedBy(limit) for limit in fields.get("limits_hit", ())),
        network_denied=tuple(map(_denial, fields.get("network_denied", ()))),
        peak=Usage(**{name: int(peak[name]) for name in _USAGE_NUMBERS if name in peak}),
        **numbers,
    )


def _denial(fields: Mapping[str, Any]) -> NetworkDenial:
    return NetworkDenial(
        host=str(fields["host"]),
        port=int(fields["port"]),
        reason=str(fields["reason"]),
        count=int(fields["count"]),
    )


def _error(error: Exception) -> dict[str, Any]:
    if not isinstance(error, WorkerError):
        error = WorkerError(str(error))
    return {
        "class": type(error).__name__,
        "message": error.message,
        "reason": error.reason,
        "retry_after_s": error.retry_after_s,
        "metadata": error.metadata,
    }


def _read_error(fields: Mapping[str, Any]) -> WorkerError:
    kind = _error_classes().get(str(fields["class"]), WorkerError)
    return kind(
        str(fields["message"]),
        reason=str(fields["reason"]),
        retry_after_s=fields.get("retry_after_s"),
        metadata=dict(fields.get("metadata") or {}),
    )


def _error_classes() -> dict[str, type[WorkerError]]:
    found: dict[str, type[WorkerError]] = {}
    pending = [WorkerError]
    while pending:
        kind = pending.pop()
        found[kind.__name__] = kind
        pending += kind.__subclasses__()
    return found
