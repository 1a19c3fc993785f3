"""A call's work in a task of its own, so that a cancel reaches it once and its cleanup is whole.

The protocol's library cancels by anyio scopes, which cancel again at every await until the scope
is left; cleanup that awaits would be cut short by that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

from codegen_mcp.core.errors import Cancelled

T = TypeVar("T")

CLEANUP_S = 5.0
"""How long cancelled work may take to clean up before nobody waits for it any more."""


async def isolated(work: Coroutine[Any, Any, T], gone: asyncio.Event | None = None) -> T:
    """Await the work; a cancel of the caller, or ``gone``, cancels it and waits for its cleanup.

    Raises:
        asyncio.CancelledError: The caller was cancelled.
        Cancelled: ``gone`` was set.
    """
    task = asyncio.create_task(work, name="mcp-call")
    watch = asyncio.create_task(gone.wait(), name="mcp-gone") if gone is not None else None
    waited = {task} if watch is None else {task, watch}
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if watch is not None:
            watch.cancel()
        if not task.done():
            task.cancel()
            with anyio.move_on_after(CLEANUP_S, shield=True):
                await asyncio.wait([task])
    if task.cancelled():
        raise Cancelled("the caller has left; the call was ended")
    return task.result()
