"""What a caller may put into a session: variables, metadata, limits and names, all bounded."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from codegen_mcp.core.errors import FieldNotSupported, InvalidRequest
from codegen_mcp.core.limits import KIB, MIB, ResourceLimits
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.egress.service import CLOSED, Egress

MAX_ENV_ENTRIES = 256
MAX_ENV_VALUE_BYTES = 32 * KIB
MAX_ENV_BYTES = 128 * KIB
"""execve(2) gives arguments and environment together a quarter of the stack limit."""
MAX_METADATA_ENTRIES = 128
MAX_METADATA_KEY = 256
MAX_METADATA_BYTES = 64 * KIB
MIN_CHECKPOINT_INTERVAL_S = 1.0
MAX_NAME = 256
MAX_CPU_BUDGET_S = 86_400.0
MAX_EPOCH = 9_999_999_999
"""Names of checkpoints have ten digits for it."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")

MINIMA: Mapping[str, float] = {
    "memory_bytes": 32 * MIB,
    "cpu_millicores": 10,
    "disk_bytes": 4 * MIB,
    "pids": 4,
    "open_files": 32,
    "tmp_bytes": 64 * KIB,
    "concurrent_tasks": 1,
}
"""Below these no interpreter starts, or no volume can be made."""


def check_epoch(epoch: int) -> int:
    """Accept the epoch under which a session is to be held.

    Raises:
        InvalidRequest: It is not 1 to 9,999,999,999.
    """
    if not 1 <= epoch <= MAX_EPOCH:
        raise InvalidRequest(f"epoch={epoch!r} must be 1 to {MAX_EPOCH}")
    return epoch


def check_network(egress: Egress | None, asked: SessionConfig) -> None:
    """Accept what a session asks of the network.

    Raises:
        FieldNotSupported: The worker has no way out.
        InvalidRequest: A host of its allow list is none.
        WrongState: It goes beyond the worker's, or cannot be held up here.
    """
    if egress is not None:
        egress.check_session(allow_network=asked.allow_network, allow_hosts=asked.allow_hosts)
    elif asked.allow_network or asked.allow_hosts:
        field = "config.allow_network" if asked.allow_network else "config.allow_hosts"
        raise FieldNotSupported(
            f"{field} is not supported by this worker; {CLOSED}", metadata={"field": field}
        )


def check_env(env: Mapping[str, str]) -> dict[str, str]:
    """Accept variables of a session or of a task.

    Raises:
        InvalidRequest: A name or value cannot be in an environment, or they are too many.
    """
    if len(env) > MAX_ENV_ENTRIES:
        raise InvalidRequest(
            f"{len(env)} environment variables are too many; send at most {MAX_ENV_ENTRIES}"
        )
    total = 0
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise InvalidRequest(
                f"environment variable name {name[:80]!r} is not valid; use A-Z a-z 0-9 _ and no "
                "digit in front, at most 256 characters"
            )
        size = len(_encoded(f"environment variable {name!r}", value))
        if "\0" in value:
            raise InvalidRequest(
                f"environment variable {name!r} has a NUL character, which no environment can "
                "hold; remove it"
            )
        if size > MAX_ENV_VALUE_BYTES:
            raise InvalidRequest(
                f"environment variable {name!r} has {size} bytes; at most {MAX_ENV_VALUE_BYTES} "
                "are possible, put longer values into a file"
            )
        total += len(name) + size + 2
    if total > MAX_ENV_BYTES:
        raise InvalidRequest(
            f"environment variables of {total} bytes are too long together; at most "
            f"{MAX_ENV_BYTES} are possible, put longer values into files"
        )
    return dict(env)


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Accept metadata of a session.

    Raises:
        InvalidRequest: It has too many entries or bytes, an empty key, or text that is none.
    """
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise InvalidRequest(
            f"{len(metadata)} metadata entries are too many; keep at most {MAX_METADATA_ENTRIES}"
        )
    total = 0
    for key, value in metadata.items():
        if not 1 <= len(key) <= MAX_METADATA_KEY:
            raise InvalidRequest(
                f"metadata key {key[:80]!r} has {len(key)} characters; use 1 to {MAX_METADATA_KEY}"
            )
        total += len(_encoded("a metadata key", key)) + len(_encoded(f"metadata {key!r}", value))
    if total > MAX_METADATA_BYTES:
        raise InvalidRequest(
            f"metadata of {total} bytes is too long; keep at most {MAX_METADATA_BYTES} and put "
            "the rest into files"
        )
    return dict(metadata)


def check_name(field: str, value: str) -> str:
    """Accept a caller's own label, such as a workspace or user id.

    Raises:
        InvalidRequest: It is too long or no text.
    """
    if len(value) > MAX_NAME:
        raise InvalidRequest(
            f"{field} {value[:80]!r}... has {len(value)} characters; use at most {MAX_NAME}"
        )
    _encoded(field, value)
    return value


def check_limits(limits: ResourceLimits, maximum: ResourceLimits) -> ResourceLimits:
    """Accept limits that a session asks for.

    Raises:
        InvalidRequest: One is above the maximum of this worker, or too small to start with.
    """
    for entry in dataclasses.fields(ResourceLimits):
        value = getattr(limits, entry.name)
        most = getattr(maximum, entry.name)
        least = MINIMA.get(entry.name, 0)
        if entry.name == "cpu_s":
            most = most or MAX_CPU_BUDGET_S  # 0 is no budget, so it bounds nothing
        if value > most:
            raise InvalidRequest(
                f"limit {entry.name}={value!r} is above this worker's maximum {most!r}; ask for "
                "at most that",
                reason="LIMIT_TOO_HIGH",
            )
        if value < least:
            raise InvalidRequest(
                f"limit {entry.name}={value!r} is too small for a session; ask for at least "
                f"{least!r}",
                reason="LIMIT_TOO_LOW",
            )
    if limits.timeout_s > limits.max_timeout_s:
        raise InvalidRequest(
            f"limit timeout_s={limits.timeout_s!r} is above max_timeout_s="
            f"{limits.max_timeout_s!r}; lower it"
        )
    return limits


def check_idle_timeout(seconds: float, maximum_s: float) -> float:
    """Accept an idle timeout.

    Raises:
        InvalidRequest: It is not above 0, or longer than this worker allows.
    """
    if not math.isfinite(seconds) or not 0 < seconds <= maximum_s:
        raise InvalidRequest(
            f"idle timeout of {seconds!r} s is not possible; use more than 0 and at most "
            f"{maximum_s!r}"
        )
    return float(seconds)


def check_checkpoint_interval(seconds: float) -> float:
    """Accept how often a session is saved by itself; 0 is never.

    Raises:
        InvalidRequest: It is negative, not finite, or below the least.
    """
    if not math.isfinite(seconds) or seconds < 0 or 0 < seconds < MIN_CHECKPOINT_INTERVAL_S:
        raise InvalidRequest(
            f"checkpoint interval of {seconds!r} s is not possible; use 0 (never) or at least "
            f"{MIN_CHECKPOINT_INTERVAL_S!r}"
        )
    return float(seconds)


def _encoded(what: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{what} is not valid text ({error.reason}); send UTF-8") from error
