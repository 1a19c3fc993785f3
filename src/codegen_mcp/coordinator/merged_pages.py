"""One page out of the lists of several workers, newest first.

A page token names the last entry that was shown, by time and id, and every list takes it: each then
goes on after that place, whether or not it has that entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """What one list answers."""

    entries: Sequence[T]
    token: str


Fetch = Callable[[str], Awaitable[Page[T]]]
"""From a token to the page after it."""


async def merged(
    lists: Sequence[Fetch[T]],
    token: str,
    *,
    size: int,
    room_bytes: int,
    place: Callable[[T], tuple[int, str]],
    bytes_of: Callable[[T], int],
    mine: Callable[[T], Awaitable[bool]],
) -> Page[T]:
    """Return the newest entries after the token of all lists together.

    Args:
        lists: Each newest first.
        token: Where the page before ended; empty is the beginning.
        size: Entries at most.
        room_bytes: Of the entries together, beyond the first.
        place: Time and id: their order, and what the token is made of.
        bytes_of: How much of a message an entry takes.
        mine: Whether the caller may see it.
    """
    limit = asyncio.Semaphore(AT_ONCE)

    async def first(fetch: Fetch[T]) -> list[T]:
        found: list[T] = []
        after = token
        async with limit:
            while len(found) <= size:
                page = await fetch(after)
                found += [entry for entry in page.entries if await mine(entry)]
                after = page.token
                if not after:
                    break
        return found

    unique: dict[str, T] = {}
    for entries in await asyncio.gather(*map(first, lists)):
        for entry in entries:
            unique.setdefault(place(entry)[1], entry)
    ordered = sorted(unique.values(), key=place, reverse=True)
    shown: list[T] = []
    for entry in ordered:
        room_bytes -= bytes_of(entry)
        if len(shown) == size or (shown and room_bytes < 0):
            time_ms, name = place(shown[-1])
            return Page(shown, f"{time_ms}.{name}")
        shown.append(entry)
    return Page(shown, "")
