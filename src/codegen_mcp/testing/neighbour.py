"""A neighbour in a process of its own, who runs print(1) again and again and keeps the time."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from codegen_mcp.testing.driven import Driven, p95
from codegen_mcp.testing.wire import dial

LEAST = 30
"""Samples for a percentile at rest."""


class Neighbour:
    """Asks the process for what it measured."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def seconds(self) -> list[float]:
        """How long each print(1) took since the last call, the one under way included."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        found: list[float] = json.loads(await self._process.stdout.readline())
        return found

    async def at_rest(self) -> float:
        """Measure the 95th percentile now, while nothing else is asked of the worker."""
        found = await self.seconds()
        found.clear()
        while len(found) < LEAST:
            await asyncio.sleep(0.02)
            found += await self.seconds()
        return p95(found)


@asynccontextmanager
async def neighbour(address: str, session_id: str) -> AsyncIterator[Neighbour]:
    """Start one in a session of its own; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, address, session_id),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Neighbour(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def _measure(address: str, session_id: str) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    asked = asyncio.ensure_future(reader.readline())
    async with dial(address) as wire:
        session, found = Driven(wire, session_id), list[float]()
        while True:
            ran = await session.python("print(1)")
            assert ran.stdout == b"1\n", ran
            found.append(ran.seconds)
            await asyncio.sleep(0)
            if asked.done():
                if not asked.result():
                    return
                sys.stdout.write(json.dumps(found) + "\n")
                sys.stdout.flush()
                found.clear()
                asked = asyncio.ensure_future(reader.readline())


if __name__ == "__main__":
    asyncio.run(_measure(sys.argv[1], sys.argv[2]))
