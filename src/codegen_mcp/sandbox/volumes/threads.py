"""Blocking work that is never left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def to_end(
    work: Callable[[], T],
    undo: Callable[[T], None] | None = None,
    stop: Callable[[], object] | None = None,
) -> T:
    """Run in a thread to its end, whatever happens to the caller.

    A caller that is cancelled meanwhile calls ``stop``, waits, has the result undone, and is then
    cancelled.
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        await _settled(future)
        if future.exception() is None and undo is not None:
            result = future.result()
            await _settled(loop.run_in_executor(None, undo, result))
        raise


async def _settled(future: asyncio.Future[T]) -> None:
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
