"""Waiting for work that must not be left half done."""

from __future__ import annotations

import asyncio
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
