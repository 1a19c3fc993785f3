"""A task's bounds tighten the session's and never widen them."""

from __future__ import annotations

import math

import pytest

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import MIB, ResourceLimits, RunLimits
from codegen_mcp.engine.base import Constraints
from codegen_mcp.engine.constraints import MAX_ENV_BYTES, check_env, checked_timeout, tightened
from codegen_mcp.engine.fingerprint import fingerprint
from codegen_mcp.tools.registry import tools_by_name

LIMITS = ResourceLimits(timeout_s=60, max_timeout_s=100, output_bytes=MIB, memory_bytes=64 * MIB)


@pytest.mark.parametrize("nothing", [None, 0])
def test_nothing_and_zero_are_the_session_s_own(nothing: int | None) -> None:
    constraints = Constraints(timeout_s=nothing, memory_bytes=nothing, output_bytes=nothing)
    assert tightened(LIMITS, constraints) == RunLimits(timeout_s=60, output_bytes=MIB)


def test_tighter_bounds_are_taken_and_a_timeout_may_reach_the_maximum() -> None:
    constraints = Constraints(timeout_s=100, memory_bytes=MIB, output_bytes=5)
    assert tightened(LIMITS, constraints) == RunLimits(
        timeout_s=100, output_bytes=5, memory_bytes=MIB
    )


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, math.inf, -math.inf, 100.1, 1e308])
def test_timeouts_that_are_no_time_or_too_long_are_refused(seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="timeout"):
        checked_timeout(LIMITS, seconds)


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        (Constraints(memory_bytes=64 * MIB + 1), "memory_bytes=67108865 is above"),
        (Constraints(output_bytes=MIB + 1), "output_bytes=1048577 is above"),
        (Constraints(memory_bytes=-5), "negative"),
        (Constraints(output_bytes=-5), "negative"),
    ],
)
def test_asking_for_more_than_the_session_has_is_refused(
    constraints: Constraints, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        tightened(LIMITS, constraints)


@pytest.mark.parametrize(
    "env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "\0"}, {"A": "x" * MAX_ENV_BYTES}]
)
def test_variables_that_no_process_can_have_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="environment"):
        check_env(env)


def test_a_fingerprint_sees_content_not_order_nor_notation() -> None:
    model = tools_by_name()["run.python"].spec.arguments

    def of(env: dict[str, str], **arguments: object) -> str:
        return fingerprint("run.python", model(**arguments), env, Constraints(), 1)

    one = of({"A": "1", "B": "2"}, code="x", env_vars={"C": "3", "D": "4"})
    assert one == of({"B": "2", "A": "1"}, code="x", env_vars={"D": "4", "C": "3"}, args=())
    assert one != of({"A": "1"}, code="x", env_vars={"B": "2", "C": "3", "D": "4"})
    assert of({}, code="a", args=("bc",)) != of({}, code="a", args=("b", "c"))
    assert of({}, stdin=b"a") != of({}, stdin_text="a")
    plain = Constraints()
    assert fingerprint("t", "s1:a", {}, plain, 0) != fingerprint("t", {"s1": "a"}, {}, plain, 0)
    assert fingerprint("t", "", {}, plain, 0) == fingerprint(
        "t", "", {}, Constraints(timeout_s=0), 0
    )
