"""What a caller may put into a session."""

from __future__ import annotations

import dataclasses

import pytest

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import GIB, MIB, ResourceLimits
from codegen_mcp.engine.session_checks import (
    MAX_ENV_ENTRIES,
    MAX_ENV_VALUE_BYTES,
    check_env,
    check_idle_timeout,
    check_limits,
    check_metadata,
    check_name,
)


def test_ordinary_variables_are_accepted_as_they_are() -> None:
    env = {"PATH_X": "/a:/b", "_a1": "", "GREETING": "grüße\nzwei"}
    assert check_env(env) == env


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A\0", "Ä", "A" * 257, "A\n"])
def test_a_name_that_no_environment_can_hold_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="environment variable name"):
        check_env({name: "x"})


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"A": "x\0y"}, "NUL"),
        ({"A": "\ud800"}, "not valid text"),
        ({"A": "x" * (MAX_ENV_VALUE_BYTES + 1)}, "put longer values into a file"),
        ({f"A{i}": "x" * MAX_ENV_VALUE_BYTES for i in range(5)}, "too long together"),
        ({f"A{i}": "" for i in range(MAX_ENV_ENTRIES + 1)}, "too many"),
    ],
)
def test_values_are_bounded_and_the_message_says_what_to_do(
    env: dict[str, str], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_env(env)


@pytest.mark.parametrize(
    "metadata",
    [
        {"": "x"},
        {"k" * 257: "x"},
        {f"k{i}": "" for i in range(129)},
        {"k": "x" * 70_000},
        {"k": "\udfff"},
    ],
)
def test_metadata_is_bounded(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="metadata"):
        check_metadata(metadata)


def test_names_are_bounded() -> None:
    assert check_name("user_id", "u") == "u"
    with pytest.raises(InvalidRequest, match="user_id"):
        check_name("user_id", "u" * 257)


def test_a_limit_above_the_maximum_is_refused_with_value_and_remedy() -> None:
    maximum = ResourceLimits(memory_bytes=1 * GIB)
    with pytest.raises(
        InvalidRequest, match=r"memory_bytes=2147483648 .*ask for at most"
    ) as caught:
        check_limits(ResourceLimits(memory_bytes=2 * GIB), maximum)
    assert caught.value.reason == "LIMIT_TOO_HIGH"


def test_a_limit_with_which_nothing_starts_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="ask for at least"):
        check_limits(ResourceLimits(memory_bytes=1 * MIB), ResourceLimits())


def test_every_limit_has_a_maximum() -> None:
    maximum = ResourceLimits()
    for field in dataclasses.fields(ResourceLimits):
        value = getattr(maximum, field.name)
        more = dataclasses.replace(maximum, **{field.name: value + 1 if value else 1e9})
        with pytest.raises(InvalidRequest, match=field.name):
            check_limits(more, maximum)


def test_a_cpu_budget_may_be_asked_for_where_none_is_the_default() -> None:
    check_limits(ResourceLimits(cpu_s=10), ResourceLimits())


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 101.0])
def test_an_idle_timeout_must_be_positive_and_within_the_maximum(seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="idle timeout"):
        check_idle_timeout(seconds, 100.0)
