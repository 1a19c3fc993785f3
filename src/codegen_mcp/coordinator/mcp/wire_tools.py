"""Between plain arguments and the wire's tool messages.

The seed's tools go in messages of their own, so that any ``codegen.v1`` worker takes them; every
further one by its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from codegen_mcp._proto.codegen.v1 import common_pb2, tools_pb2
from codegen_mcp.core.errors import InvalidRequest

TYPED: Mapping[str, str] = {
    "echo": "echo",
    "fs.read": "fs_read",
    "fs.write": "fs_write",
    "fs.list": "fs_list",
    "run.python": "run_python",
    "pkg.install": "pkg_install",
    "artifact.get": "artifact_get",
}
"""Dotted name to the member of ToolRequest and ToolResponse."""


def tool_request(name: str, arguments: Mapping[str, Any]) -> tools_pb2.ToolRequest:
    """Make the request of a tool from its arguments; None and what is not there is default.

    Raises:
        InvalidRequest: A number does not fit the wire's field.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    field = TYPED.get(name)
    if field is None:
        text = json.dumps(given, default=_plain)
        return tools_pb2.ToolRequest(call=tools_pb2.ToolCall(name=name, arguments_json=text))
    if "timeout_seconds" in given:
        given["timeout_seconds"] = math.ceil(given["timeout_seconds"])
    if stdin_text := given.pop("stdin_text", ""):
        given["stdin"] = stdin_text.encode("utf-8", "surrogatepass")
    request = tools_pb2.ToolRequest()
    message = getattr(request, field)
    message.SetInParent()
    try:
        for key, value in given.items():
            _set(message, key, value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"{key} cannot be sent as it is: {error}") from None
    return request


def tool_answer(response: tools_pb2.ToolResponse) -> dict[str, Any]:
    """Read a tool's answer as plain data, whichever form it came in; empty where there is none."""
    kind = response.WhichOneof("response")
    if kind is None:
        return {}
    if kind == "call":
        value = json.loads(response.call.result_json)
        return value if isinstance(value, dict) else {}
    return _read(getattr(response, kind))


def ended_by(value: int) -> str:
    """Name an EndedBy: ``memory``; empty where it is not said."""
    try:
        name = common_pb2.EndedBy.Name(value)  # type: ignore[arg-type]  # unknown values raise
    except ValueError:
        return ""
    short = name.removeprefix("ENDED_BY_").lower()
    return "" if short == "unspecified" else short


def _set(message: Any, key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        getattr(message, key).update(value)
    elif isinstance(value, (list, tuple)):
        getattr(message, key).extend(value)
    else:
        setattr(message, key, value)


def _read(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name == "metadata":
            continue
        if field.message_type is not None and field.is_repeated:
            plain[field.name] = [_read(one) for one in value]
        else:
            plain[field.name] = list(value) if field.is_repeated else value
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        raise InvalidRequest("bytes cannot be sent to this tool; send text")
    return dict(value) if isinstance(value, Mapping) else list(value)
