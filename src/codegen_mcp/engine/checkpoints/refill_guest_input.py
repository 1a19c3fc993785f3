"""The input of the program that refills a sandbox, counted and parsed as JSON.

Part of ``refill_guest`` (see there): standard library only, Python 3.8 or later.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

BLOCK = 512
PIECE = 1 << 20
LINE_BYTES = 1 << 23


class Refused(Exception):
    """What was sent is damaged or hostile: ``args`` are what is wrong, and the name that has it."""


def make_scanner() -> Callable[[str, int], tuple[Any, int]]:
    """Return a function that reads one JSON value from a text at an index."""

    class Settings:
        strict = True
        object_hook = object_pairs_hook = None
        parse_float = float
        parse_int = int
        parse_constant = None
        memo: dict[str, str] = {}  # noqa: RUF012

    try:
        from _json import make_scanner as make

        scanner: Callable[[str, int], tuple[Any, int]] = make(Settings)  # type: ignore[arg-type]
    except (ImportError, AttributeError, TypeError):
        from json import JSONDecoder

        scanner = JSONDecoder().scan_once  # type: ignore[attr-defined]
    return scanner


class Input:
    """Standard input, of which only as much is read as was announced."""

    def __init__(self, fd: int) -> None:
        self.file = open(fd, "rb", buffering=PIECE, closefd=False)  # noqa: SIM115
        self.scan = make_scanner()
        self.left = 0
        """Bytes of the present part that were not read yet."""

    def line(self, what: str) -> Any:
        """Read one line of JSON of the present part."""
        data = self.file.readline(min(LINE_BYTES, self.left))
        self.left -= len(data)
        if data[-1:] != b"\n":
            raise Refused(f"{what} is cut off or too long", b"")
        try:
            text = str(data, "ascii")
            value, end = self.scan(text, 0)
        except (ValueError, StopIteration, RecursionError, TypeError):
            raise Refused(what + " is no JSON", data[:200]) from None
        if end != len(text) - 1:
            raise Refused(what + " is more than one JSON value", data[:200])
        return value

    def take(self, count: int, where: bytes) -> bytes:
        """Read so many bytes of the present part."""
        if count > self.left:
            raise Refused("it reaches beyond the end of its archive", where)
        data = self.file.read(count)
        self.left -= count
        if len(data) != count:
            raise Refused("the archive is cut off", where)
        return data

    def pieces(self, count: int, where: bytes) -> Iterator[bytes]:
        """Read so many bytes, a piece at a time."""
        while count > PIECE:
            yield self.take(PIECE, where)
            count -= PIECE
        if count:
            yield self.take(count, where)

    def skip(self, count: int, where: bytes) -> None:
        """Read bytes and drop them."""
        for _ in self.pieces(count, where):
            pass
