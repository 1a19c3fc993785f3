"""Lists of several workers become one, page by page, with nothing twice and nothing left out."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.coordinator.merged_pages import Page, merged

Entry = tuple[int, str, str]
"""Time, id, owner."""


class Source:
    """A worker's own list: newest first, at most ``size`` a page."""

    def __init__(self, entries: Sequence[Entry], size: int) -> None:
        self.entries = sorted(entries, reverse=True)
        self.size = size

    async def fetch(self, token: str) -> Page[Entry]:
        left = self.entries
        if token:
            time, _, name = token.partition(".")
            left = [entry for entry in left if entry[:2] < (int(time), name)]
        page = left[: self.size]
        more = len(left) > len(page)
        return Page(page, f"{page[-1][0]}.{page[-1][1]}" if more else "")


ENTRIES = st.lists(
    st.tuples(
        st.integers(0, 5), st.sampled_from([f"e{n}" for n in range(12)]), st.sampled_from("ab")
    ),
    unique_by=lambda entry: entry[1],
)


@given(ENTRIES, st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=3), st.integers(1, 4))
async def test_all_pages_together_are_all_of_ones_own_once_and_newest_first(
    entries: list[Entry], who_has: list[set[int]], size: int
) -> None:
    sources = [
        Source([entry for n, entry in enumerate(entries) if n in held], size) for held in who_has
    ]
    known = {n for held in who_has for n in held if n < len(entries)}
    expected = sorted((entries[n] for n in known if entries[n][2] == "a"), reverse=True)

    async def mine(entry: Entry) -> bool:
        return entry[2] == "a"

    shown: list[Entry] = []
    token = ""
    while True:
        page = await merged(
            [source.fetch for source in sources],
            token,
            size=size,
            room_bytes=1 << 20,
            place=lambda entry: entry[:2],
            bytes_of=lambda entry: 10,
            mine=mine,
        )
        assert len(page.entries) <= size
        shown += page.entries
        token = page.token
        if not token:
            break
    assert shown == expected


async def test_a_page_ends_where_a_message_would_be_full_but_never_empty() -> None:
    source = Source([(n, f"e{n}", "a") for n in range(5)], 5)

    async def mine(entry: Entry) -> bool:
        return True

    page = await merged(
        [source.fetch],
        "",
        size=5,
        room_bytes=25,
        place=lambda entry: entry[:2],
        bytes_of=lambda entry: 10,
        mine=mine,
    )
    assert [entry[1] for entry in page.entries] == ["e4", "e3"]
    page = await merged(
        [source.fetch],
        page.token,
        size=5,
        room_bytes=1,
        place=lambda entry: entry[:2],
        bytes_of=lambda entry: 10,
        mine=mine,
    )
    assert [entry[1] for entry in page.entries] == ["e2"]
