"""Who counts as silent: what the observer has heard itself, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.silence import Silence

ONE, TWO = Owner(worker_id="one", incarnation=1), Owner(worker_id="two", incarnation=1)
LOST_AFTER_S = 12.0
BEAT_S = 2.0

moments = st.floats(0, 60, allow_nan=False)


def test_a_counter_that_stands_still_is_silence_after_the_whole_time() -> None:
    silence = Silence(LOST_AFTER_S)
    for second in range(100, 112):
        assert silence.hear({ONE: 7, TWO: second}, asked=second, answered=second) == {}
    assert silence.hear({ONE: 7, TWO: 0}, asked=112, answered=112) == {ONE: 7}


def test_a_beat_begins_the_time_anew() -> None:
    silence = Silence(LOST_AFTER_S)
    for second in range(24):
        assert silence.hear({ONE: second >= 12}, asked=second, answered=second) == {}
    assert silence.hear({ONE: 1}, asked=24, answered=24) == {ONE: 1}


def test_another_start_of_a_worker_has_a_time_of_its_own() -> None:
    silence = Silence(LOST_AFTER_S)
    again = Owner(worker_id="one", incarnation=2)
    for second in range(12):
        silence.hear({ONE: 0}, asked=second, answered=second)
    assert silence.hear({again: 0}, asked=12, answered=12) == {}


def test_whoever_did_not_listen_begins_anew() -> None:
    silence = Silence(LOST_AFTER_S)
    for second in range(12):
        silence.hear({ONE: 0}, asked=second, answered=second)
    assert silence.hear({ONE: 0}, asked=15.1, answered=15.1) == {}
    for second in range(16, 27):
        assert silence.hear({ONE: 0}, asked=second, answered=second) == {}
    assert silence.hear({ONE: 0}, asked=28, answered=28) == {ONE: 0}


def test_a_slow_answer_is_time_in_which_nobody_listened() -> None:
    silence = Silence(LOST_AFTER_S)
    for second in range(12):
        silence.hear({ONE: 0}, asked=second, answered=second)
    assert silence.hear({ONE: 0}, asked=12, answered=16) == {}
    silence = Silence(LOST_AFTER_S)
    assert silence.hear({ONE: 0}, asked=0, answered=3) == {}
    for second in range(4, 15):
        assert silence.hear({ONE: 0}, asked=second, answered=second) == {}
    assert silence.hear({ONE: 0}, asked=15, answered=15) == {ONE: 0}


@given(
    phase=st.floats(0, BEAT_S, allow_nan=False),
    readings=st.lists(st.tuples(moments, st.floats(0, 10, allow_nan=False)), max_size=80),
    read_at=st.floats(0, 1, allow_nan=False),
)
def test_whoever_beats_is_never_silent_however_the_observer_is_held_up(
    phase: float, readings: list[tuple[float, float]], read_at: float
) -> None:
    """Gaps between readings and slow answers are drawn; the counter is read in between."""
    silence, now = Silence(LOST_AFTER_S), 0.0
    for pause, delay in readings:
        asked, answered = now + pause, now + pause + delay
        count = int((asked + read_at * delay + phase) / BEAT_S)
        assert silence.hear({ONE: count}, asked=asked, answered=answered) == {}
        now = answered


@given(
    pauses=st.lists(st.floats(0.01, 2, allow_nan=False), min_size=20, max_size=60),
    delay=st.floats(0, 1, allow_nan=False),
)
def test_whoever_stops_is_found_by_one_who_listens(pauses: list[float], delay: float) -> None:
    silence, now, found = Silence(LOST_AFTER_S), 0.0, None
    for pause in [*pauses, *[1.0] * 15]:
        asked = now + pause
        now = asked + delay
        if silence.hear({ONE: 3}, asked=asked, answered=now):
            found = asked
            break
    assert found is not None
    assert found < LOST_AFTER_S + 2 * (2 + 1)
