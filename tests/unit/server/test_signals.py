from __future__ import annotations

import asyncio
import os
import signal

from codegen_mcp.server.signals import ShutdownSignals


async def test_the_first_signal_drains_and_the_second_ends():
    async with ShutdownSignals() as signals, asyncio.timeout(5):
        os.kill(os.getpid(), signal.SIGTERM)
        await signals.drain.wait()
        assert not signals.exit.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await signals.exit.wait()
