from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.coordinator.mcp.budget import HeadTail, cut, fitting, json_size

TEXT = st.text(st.sampled_from('ab\n"\\ä€😀\x00'), max_size=400)


@given(TEXT, st.integers(40, 200), st.lists(st.integers(1, 50), max_size=20))
def test_head_omitted_and_tail_are_the_whole_to_the_byte(
    text: str, room: int, pieces: list[int]
) -> None:
    data = text.encode()
    seen = HeadTail(room)
    at = 0
    for piece in pieces:
        seen.add(data[at : at + piece])
        at += piece
    seen.add(data[at:])
    shown = seen.shown(room)
    head, tail = shown.head.encode(), shown.tail.encode()
    assert len(head) + shown.omitted + len(tail) == len(data)
    assert data.startswith(head)
    assert data.endswith(tail)
    assert shown.omitted_from == (len(head) if shown.omitted else len(data))
    assert json_size(shown.head) + json_size(shown.tail) <= room


@given(TEXT, st.integers(1, 100))
def test_what_fits_is_a_beginning_that_ends_at_a_character(text: str, room: int) -> None:
    kept = fitting(text.encode(), room)
    assert text.startswith(kept.decode())
    assert json_size(kept.decode()) <= room


@given(st.binary(max_size=300), st.integers(40, 100))
def test_bytes_that_are_no_text_never_exceed_the_room(data: bytes, room: int) -> None:
    shown = cut(data, b"", 0, room)
    assert json_size(shown.head) + json_size(shown.tail) <= room
    assert shown.omitted >= 0


def test_what_never_came_is_counted_and_the_end_after_it_is_shown() -> None:
    seen = HeadTail(20)
    seen.add(b"first\n")
    seen.skip(1000)
    seen.add(b"last\n")
    shown = seen.shown(100)
    assert (shown.head, shown.tail, shown.omitted) == ("first\n", "last\n", 994)
    assert seen.total == 1005


def test_a_cut_is_at_the_end_of_a_line_where_that_costs_little() -> None:
    data = b"".join(b"line %03d\n" % n for n in range(100))
    shown = cut(data, b"", 0, 200)
    assert shown.head.endswith("\n")
    assert shown.tail.startswith("line")
    assert "[mark]\nline" in shown.joined("[mark]")
