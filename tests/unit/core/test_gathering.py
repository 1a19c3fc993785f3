from __future__ import annotations

from codegen_mcp.core.gathering import MOST_S, gather_s


def test_few_calls_wait_for_nobody() -> None:
    assert [gather_s(count) for count in range(5)] == [0.0] * 5


def test_more_calls_wait_longer_and_never_for_more_than_a_bound() -> None:
    waits = [gather_s(count) for count in range(10_000)]
    assert waits == sorted(waits)
    assert waits[16] < waits[64] <= MOST_S == waits[-1]
