"""Reading on in a second thread while the first one works on what came."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

DEPTH = 4
"""Pieces that wait at most: bounds memory."""


def read_ahead(pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Yield the pieces; the next few are made meanwhile, in a thread that ends with this.

    Worth it where making a piece lets other threads run, as inflating and reading do. Close the
    generator when it is not read to its end: it then waits for the piece under way.
    """
    pending: deque[Future[bytes]] = deque()
    thread = ThreadPoolExecutor(1, "ahead")
    try:
        for _ in range(DEPTH):
            pending.append(thread.submit(next, pieces, b""))
        while piece := pending.popleft().result():
            pending.append(thread.submit(next, pieces, b""))
            yield piece
    finally:
        thread.shutdown(cancel_futures=True)
