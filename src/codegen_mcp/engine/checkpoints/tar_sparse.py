"""The map of a sparse file: where it has data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from codegen_mcp.engine.checkpoints.tar_format import (
    BLOCK,
    EXTENDED_AT,
    MAP_AT,
    MAP_IN_EXTENSION,
    MAP_IN_HEADER,
    PLACE,
    parse_number,
)

MAX_PLACES = 16384
"""Of one file's map; a file with more is packed with some of its holes as zeros."""


def sparse_map(segments: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Bring (offset, length) pairs of data into the form that an archive has.

    In order, apart, whole blocks (GNU tar pads each to a block and Python's tarfile none, so only
    whole ones mean the same to both), and a last (size, 0) where the file ends with a hole.

    Raises:
        ValueError: A pair lies outside of the file.
    """
    places: list[tuple[int, int]] = []
    for offset, length in sorted(segments):
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError(f"segment {(offset, length)} lies outside of a file of {size} bytes")
        start = offset - offset % BLOCK
        end = min(size, offset + length + -(offset + length) % BLOCK)
        if not length:
            continue
        if places and start <= sum(places[-1]):
            start, end = places[-1][0], max(end, sum(places[-1]))
            places.pop()
        places.append((start, end - start))
    while len(places) >= MAX_PLACES:
        places = [_joined(places[i : i + 2]) for i in range(0, len(places), 2)]
    if (sum(places[-1]) if places else 0) < size:
        places.append((size, 0))
    return places


def _joined(places: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return places[0][0], sum(places[-1]) - places[0][0]


def extents(places: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[bool, int]]:
    """Walk the whole file: (whether it is data, how many bytes), holes and data in turn."""
    at = 0
    for offset, length in places:
        if offset > at:
            yield False, offset - at
        if length:
            yield True, length
        at = offset + length
    if at < size:
        yield False, size - at


def read_map(
    header: bytes, take: Callable[[], bytes], size: int
) -> tuple[list[tuple[int, int]], bytes]:
    """Read the map of a sparse file of ``size`` bytes and check that ``sparse_map`` gives it too.

    Args:
        header: The block of the member's header.
        take: Gives the next block.
        size: Of the file, as its entry says.

    Returns:
        The map, and the blocks that were taken.

    Raises:
        ValueError: It is none; says why.
    """
    places = _places(header[MAP_AT:EXTENDED_AT], MAP_IN_HEADER)
    taken = []
    extended = header[EXTENDED_AT]
    while extended:
        if len(places) >= MAX_PLACES:
            raise ValueError(f"the map has more than {MAX_PLACES} places")
        taken.append(take())
        places += _places(taken[-1], MAP_IN_EXTENSION)
        extended = taken[-1][MAP_IN_EXTENSION * PLACE]
    at = 0
    for offset, length in places:
        if offset < at or length < 0 or offset + length > size:
            raise ValueError(f"the map's place {(offset, length)} overlaps or leaves the file")
        at = offset + length
    if places != sparse_map(places, size):
        raise ValueError("the map is not of whole blocks apart")
    return places, b"".join(taken)


def _places(area: bytes, most: int) -> list[tuple[int, int]]:
    used = [area[i * PLACE : (i + 1) * PLACE] for i in range(most)]
    return [
        (parse_number(place[:12]), parse_number(place[12:])) for place in used if place.strip(b"\0")
    ]
