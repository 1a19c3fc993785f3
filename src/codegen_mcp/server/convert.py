"""Between the wire and the core: what sessions and tasks share."""

from __future__ import annotations

from collections.abc import Mapping

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp.core.errors import FieldNotSupported, InvalidRequest
from codegen_mcp.core.limits import KIB, MIB, Usage

MAX_MESSAGE_BYTES = 4 * MIB
"""Of any message in either direction: the limit that every stock client has."""
MAX_PAYLOAD_BYTES = MAX_MESSAGE_BYTES - 64 * KIB
"""Of a tool's answer; the rest is for what is around it."""
MAX_CHUNK_BYTES = 1 * MIB
"""Of a piece of a streamed file."""

MAX_LABEL_BYTES = 256
"""Of workspace_id, user_id and the like."""
MAX_ENV_ENTRY_BYTES = 128 * KIB - 1
"""Linux refuses to start a program with a longer single string (MAX_ARG_STRLEN)."""
MAX_ENV_BYTES = 512 * KIB


def usage(value: Usage) -> common_pb2.ResourceUsage:
    """Current values."""
    return common_pb2.ResourceUsage(
        memory_bytes=value.memory_bytes,
        cpu_millicores=value.cpu_millicores,
        disk_bytes=value.disk_bytes,
    )


def peak(value: Usage) -> common_pb2.ResourceUsage:
    """Highest values."""
    message = common_pb2.ResourceUsage()
    fill_peak(message, value)
    return message


def fill_peak(message: common_pb2.ResourceUsage, value: Usage) -> None:
    """Highest values, into an empty message that is part of another one."""
    message.SetInParent()  # also where all are 0
    message.memory_bytes = value.memory_peak_bytes
    message.cpu_millicores = value.cpu_millicores
    message.disk_bytes = value.disk_bytes


def refuse_if_set(name: str, value: object, instead: str) -> None:
    """Refuse a field that this worker does not honour.

    Raises:
        FieldNotSupported: It is set.
    """
    if value:
        raise FieldNotSupported(
            f"{name} is not supported by this worker; {instead}", metadata={"field": name}
        )


def not_negative(name: str, value: int) -> int | None:
    """Return a number, or None for 0, which is the default.

    Raises:
        InvalidRequest: It is negative.
    """
    if value < 0:
        raise InvalidRequest(
            f"{name}={value!r} is negative; use 0 for the default", metadata={"field": name}
        )
    return value or None


def label(name: str, value: str) -> str:
    """Check a short text that is kept for the caller's own records.

    Raises:
        InvalidRequest: It is too long.
    """
    if len(value.encode()) > MAX_LABEL_BYTES:
        raise InvalidRequest(
            f"{name} has {len(value.encode())} bytes; use at most {MAX_LABEL_BYTES}",
            metadata={"field": name},
        )
    return value


def variables(name: str, value: Mapping[str, str]) -> dict[str, str]:
    """Check environment variables, as far as execve(2) has an opinion.

    Raises:
        InvalidRequest: A name is empty or has ``=``, something has a NUL, or it is too much.
    """
    total = 0
    for key, text in value.items():
        if not key or "=" in key or "\0" in key or "\0" in text:
            raise InvalidRequest(
                f"{name} has {key[:80]!r}; a name needs at least one character and no '=', "
                "and neither it nor its value may have a NUL",
                metadata={"field": name},
            )
        size = len(key.encode()) + len(text.encode()) + 2
        total += size
        if size > MAX_ENV_ENTRY_BYTES or total > MAX_ENV_BYTES:
            raise InvalidRequest(
                f"{name} is too large at {key[:80]!r}; one variable may have "
                f"{MAX_ENV_ENTRY_BYTES} bytes and all together {MAX_ENV_BYTES}; "
                "put data into a file of the workspace",
                metadata={"field": name},
            )
    return dict(value)
