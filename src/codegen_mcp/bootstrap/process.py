"""What every serving process does before it serves, and when it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from concurrent.futures import ThreadPoolExecutor

from codegen_mcp.bootstrap.engine import Engine
from codegen_mcp.sandbox import mounts
from codegen_mcp.server.signals import ShutdownSignals
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.logs import configure_logging

THREADS = 32
"""For work that blocks: asyncio's own six on a small machine are soon all busy with long work."""

CONNECTIONS = 4096
"""Over HTTP at once: an agent has one, and another while a call of it runs."""
FILES = 4 * CONNECTIONS
"""That the process may have open: connections, and what their calls need."""


def prepare_process(settings: Settings) -> None:
    """Set up logs, mounts of this process alone, and threads; call it on the loop that serves."""
    configure_logging(settings.log_level)
    if settings.private_mounts and os.geteuid() == 0:
        mounts.enter_private_namespace()
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="worker")
    asyncio.get_running_loop().set_default_executor(threads)


def open_many_files(most: int) -> int:
    """Raise what this process may have open towards ``most``; how many it may have now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return most if soft == resource.RLIM_INFINITY else soft


def settle_memory() -> None:
    """Tell the collector that what is here now stays, and to look less often at what comes.

    Calls make few cycles and many short-lived objects; at the default of 700 a collection would
    run in every second call.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def wind_down(signals: ShutdownSignals, engine: Engine) -> None:
    """Let tasks finish within their grace, or until the second signal; then end them."""
    exiting = asyncio.ensure_future(signals.exit.wait())
    quiet = asyncio.ensure_future(engine.sessions.drain())
    try:
        await asyncio.wait([exiting, quiet], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in (exiting, quiet):
            future.cancel()
        await asyncio.gather(exiting, quiet, return_exceptions=True)
    await engine.tasks.stop()  # whoever follows a task is told its end
