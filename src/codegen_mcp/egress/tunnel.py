"""Carries bytes between two streams until one side is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from codegen_mcp.egress.ledger import Ledger
from codegen_mcp.egress.streams import ByteStream

Change = Callable[[bytes], bytes]
"""What is done to bytes on their way; gets empty bytes at the end and returns what it held."""


class Idle(Exception):
    """Nothing was said for too long."""


async def carry(
    client: ByteStream,
    server: ByteStream,
    ledger: Ledger,
    *,
    idle_s: float,
    back: Change | None = None,
) -> None:
    """Carry both ways until the server has ended, the client is gone, or a limit is met.

    Args:
        client: Of the sandbox.
        server: Outside.
        ledger: Counts.
        idle_s: Longest silence of both.
        back: Changes what goes to the client.

    Raises:
        OSError: One side broke. OverLimit, Idle: see there.
    """
    loop = asyncio.get_running_loop()
    last = loop.time()

    async def upwards() -> None:
        nonlocal last
        while data := await client.read():
            last = loop.time()
            ledger.count(sent=len(data))
            await server.write(data)
        await server.finish()

    async def downwards() -> None:
        nonlocal last
        while data := await server.read():
            last = loop.time()
            ledger.count(received=len(data))
            data = back(data) if back is not None else data
            if data:
                await client.write(data)
        rest = back(b"") if back is not None else b""
        if rest:
            await client.write(rest)

    up = asyncio.ensure_future(upwards())
    down = asyncio.ensure_future(downwards())
    try:
        while True:
            left = last + idle_s - loop.time()
            if left <= 0:
                raise Idle
            waiting = [down] if up.done() else [up, down]
            done, _ = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if up in done:
                up.result()
            if down in done:
                down.result()
                return
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
