"""Waiting for work that must not be left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def settled(job: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Return when ``job`` is done, even when the caller is cancelled meanwhile.

    Returns the cancellation; the caller records what the job did and then raises it.
    """
    cancelled = None
    while not job.done():
        try:
            await asyncio.wait([job])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def first_of(*waits: Coroutine[Any, Any, Any], timeout_s: float | None = None) -> None:
    """Return when the first is done or the time is over; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_of(works: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Do several things beside each other; none is under way any more when this returns or raises.

    Raises:
        Exception: Of the first, in their order, that failed.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        task.result()
