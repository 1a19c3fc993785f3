"""What one task may use: the session's bounds, which a task can only tighten."""

from __future__ import annotations

import math
from collections.abc import Mapping

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import KIB, ResourceLimits, RunLimits
from codegen_mcp.engine.base import Constraints

MAX_ENV_BYTES = 128 * KIB
"""Names and values of one task; execve(2) takes little more for a single string."""


def tightened(limits: ResourceLimits, constraints: Constraints) -> RunLimits:
    """Return the bounds of a task; zero and None mean the session's own.

    Raises:
        InvalidRequest: A value is negative, not finite, or asks for more than the session has.
    """
    timeout_s = checked_timeout(limits, constraints.timeout_s)
    memory = _within("memory_bytes", constraints.memory_bytes, limits.memory_bytes)
    output = _within("output_bytes", constraints.output_bytes, limits.output_bytes)
    return RunLimits(
        timeout_s=limits.timeout_s if timeout_s is None else timeout_s,
        output_bytes=limits.output_bytes if output is None else output,
        cpu_s=limits.cpu_s,
        memory_bytes=memory,
    )


def checked_timeout(limits: ResourceLimits, timeout_s: float | None) -> float | None:
    """Return the timeout asked for, None where the default is meant (None or zero).

    Raises:
        InvalidRequest: It is negative, not finite or above the maximum.
    """
    if timeout_s is None or timeout_s == 0:
        return None
    if not math.isfinite(timeout_s) or timeout_s < 0:
        raise InvalidRequest(
            f"timeout {timeout_s!r} is not a positive number of seconds; "
            f"pass 0 for the default of {limits.timeout_s:g} s"
        )
    if timeout_s > limits.max_timeout_s:
        raise InvalidRequest(
            f"timeout {timeout_s:g} s is above the maximum of {limits.max_timeout_s:g} s; "
            "ask for less, or split the work into several tasks"
        )
    return timeout_s


def check_env(env: Mapping[str, str]) -> None:
    """Accept the variables of a task.

    Raises:
        InvalidRequest: A name or value cannot be in an environment, or it is too large.
    """
    size = 0
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            raise InvalidRequest(
                f"environment variable name {name[:80]!r} is not valid; it must not be empty nor "
                "contain '=' or NUL"
            )
        if "\0" in value:
            raise InvalidRequest(f"environment variable {name[:80]!r} has a NUL in its value")
        size += len(name) + len(value)
    if size > MAX_ENV_BYTES:
        raise InvalidRequest(
            f"the task's environment has {size} characters, above the maximum of {MAX_ENV_BYTES}; "
            "write long values to a file of the workspace"
        )


def _within(name: str, value: int | None, limit: int) -> int | None:
    if value is None or value == 0:
        return None
    if value < 0:
        raise InvalidRequest(f"constraint {name}={value!r} is negative; pass 0 for the session's")
    if value > limit:
        raise InvalidRequest(
            f"constraint {name}={value} is above the session's {limit}; a task can only tighten "
            "it: ask for less, or create a session with a larger limit"
        )
    return value
