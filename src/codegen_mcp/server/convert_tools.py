"""Between the wire and the core: the tools that have messages of their own, and ``call``.

A tool's arguments go on as plain data under the wire's names, and the executor validates them
against the tool's own model. A tool without a message here travels as ``call``. Answers are filled
in where they are sent: a message that is given to another one is copied, at several times the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.core.errors import InvalidRequest, LimitExceeded
from codegen_mcp.engine.base import ResultEvent
from codegen_mcp.server.convert import MAX_PAYLOAD_BYTES
from codegen_mcp.tools.artifact_get import ArtifactGetResult
from codegen_mcp.tools.echo import EchoResult
from codegen_mcp.tools.fs_list import FsListResult
from codegen_mcp.tools.fs_read import FsReadResult
from codegen_mcp.tools.fs_write import FsWriteResult
from codegen_mcp.tools.pkg_install import PkgInstallResult
from codegen_mcp.tools.run_output import RunResult

Arguments = dict[str, Any] | str


@dataclass(frozen=True, slots=True)
class TypedTool:
    """A tool that has messages of its own."""

    name: str
    """Dotted."""
    field: str
    """Of ToolRequest and of ToolResponse."""
    fill: Callable[[Any, Any], None]
    """Writes the tool's result into the response's message."""


def echo(value: EchoResult, answer: tools_pb2.EchoResponse) -> None:
    """Echo."""
    answer.message = value.message


def fs_read(value: FsReadResult, answer: tools_pb2.FsReadResponse) -> None:
    """fs.read: text twice, once as it is and once as bytes, so that no client has to decode."""
    answer.contents = value.contents
    answer.size_bytes = value.size_bytes
    answer.encoding = value.encoding
    answer.data = value.data
    answer.sha256 = value.sha256


def fs_write(value: FsWriteResult, answer: tools_pb2.FsWriteResponse) -> None:
    """fs.write."""
    answer.path = value.path
    answer.bytes_written = value.bytes_written
    answer.sha256 = value.sha256


def fs_list(value: FsListResult, answer: tools_pb2.FsListResponse) -> None:
    """fs.list."""
    for entry in value.files:
        answer.files.add(
            path=entry.path,
            name=entry.name,
            size_bytes=entry.size_bytes,
            is_directory=entry.is_directory,
            modified_time_ms=entry.modified_time_ms,
            path_bytes=entry.path_bytes,
            link_target=entry.link_target,
            mode=entry.mode,
        )
    answer.total_count = value.total_count
    answer.next_offset = value.next_offset


def run_python(value: RunResult, answer: tools_pb2.RunPythonResponse) -> None:
    """run.python."""
    answer.stdout = value.stdout
    answer.stderr = value.stderr
    answer.exit_code = value.exit_code
    answer.duration_ms = value.duration_ms
    answer.timed_out = value.timed_out


def pkg_install(value: PkgInstallResult, answer: tools_pb2.PkgInstallResponse) -> None:
    """pkg.install."""
    for one in value.installed:
        answer.installed.add(name=one.name, version=one.version, location=one.location)
    answer.failed.extend(value.failed)
    answer.output = value.output
    answer.exit_code = value.exit_code


def artifact_get(value: ArtifactGetResult, answer: tools_pb2.ArtifactGetResponse) -> None:
    """artifact.get."""
    answer.data = value.data
    answer.artifact_id = value.artifact_id
    answer.size_bytes = value.size_bytes
    answer.content_type = value.content_type


TYPED = (
    TypedTool("echo", "echo", echo),
    TypedTool("fs.read", "fs_read", fs_read),
    TypedTool("fs.write", "fs_write", fs_write),
    TypedTool("fs.list", "fs_list", fs_list),
    TypedTool("run.python", "run_python", run_python),
    TypedTool("pkg.install", "pkg_install", pkg_install),
    TypedTool("artifact.get", "artifact_get", artifact_get),
)
BY_FIELD: Mapping[str, TypedTool] = {tool.field: tool for tool in TYPED}
BY_NAME: Mapping[str, TypedTool] = {tool.name: tool for tool in TYPED}


def tool_call(request: tools_pb2.ToolRequest) -> tuple[str, Arguments]:
    """Read which tool, and with what.

    Raises:
        InvalidRequest: None is set.
    """
    field = request.WhichOneof("request")
    if field is None:
        raise InvalidRequest(
            "typed_request names no tool; set one of its members, or call with a tool's name",
            reason="NO_TOOL",
        )
    if field == "call":
        if not request.call.name:
            raise InvalidRequest("typed_request.call has no name; set it", reason="NO_TOOL")
        return request.call.name, request.call.arguments_json
    return BY_FIELD[field].name, arguments(getattr(request, field))


def arguments(message: Any) -> dict[str, Any]:
    """Take the fields that are set under their names; what is not set is the model's default."""
    plain: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name == "metadata":
            continue
        if field.message_type is not None:
            plain[field.name] = dict(value)
        else:
            plain[field.name] = list(value) if field.is_repeated else value
    return plain


def fill_response(
    response: tools_pb2.ToolResponse, event: ResultEvent, request: tools_pb2.ToolRequest | None
) -> None:
    """Answer in the form of the question.

    Args:
        response: Empty; half filled when this raises.
        event: Has a value.
        request: The question; None where a task is joined: then a tool's own message if it has one.

    Raises:
        LimitExceeded: The answer does not fit into one message.
    """
    typed = BY_NAME.get(event.tool)
    if typed is None or (request is not None and request.WhichOneof("request") == "call"):
        assert event.value is not None
        response.call.result_json = event.value.model_dump_json()
    else:
        answer = getattr(response, typed.field)
        answer.SetInParent()  # also where everything in it is empty
        typed.fill(event.value, answer)
        if request is not None and (told := getattr(request, typed.field).metadata):
            answer.metadata.update(told)
    size = response.ByteSize()
    if size > MAX_PAYLOAD_BYTES:
        raise LimitExceeded(
            f"the answer of {event.tool} has {size} bytes and at most {MAX_PAYLOAD_BYTES} fit into "
            "a message; ask for less, or take files out with WorkspaceFiles.Download"
        )
