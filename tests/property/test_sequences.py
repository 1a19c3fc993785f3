"""Sequence numbers: a number is never used by two tasks, and never again once it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.core.errors import AlreadyExists, InvalidRequest, OutcomeUnknown, WorkerError
from codegen_mcp.engine.sequences import Sequences

STEPS = st.lists(
    st.tuples(st.sampled_from(["use", "forget"]), st.integers(0, 12), st.sampled_from("abcd"))
)


@given(steps=STEPS, start=st.integers(0, 3))
def test_a_number_is_new_known_or_unknown_as_a_full_memory_would_say(
    steps: list[tuple[str, int, str]], start: int
) -> None:
    sequences = Sequences(start)
    owners: dict[int, str] = {}
    highest = start
    for step, number, task in steps:
        if step == "forget":
            sequences.forget(number)
            owners.pop(number, None)
            continue
        refused = None
        try:
            sequences.check_new(number, task)
        except WorkerError as error:
            refused = error
        if number in owners:
            assert isinstance(refused, AlreadyExists)
            assert refused.metadata["task_id"] == owners[number]
        elif 0 < number <= highest:
            assert isinstance(refused, OutcomeUnknown)
        else:
            assert refused is None
            sequences.add(number, task)
            if number:
                owners[number] = task
                highest = number
        assert sequences.last == highest


@pytest.mark.parametrize("number", [-1, 2**64])
def test_numbers_that_the_wire_cannot_carry_are_refused(number: int) -> None:
    with pytest.raises(InvalidRequest):
        Sequences().check_new(number, "t")
