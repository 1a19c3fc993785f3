"""The worker as a process: signals, and words for people."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from codegen_mcp.bootstrap.engine import Engine
from codegen_mcp.bootstrap.worker import open_worker
from codegen_mcp.coordinator.auth.reach import reach_lines
from codegen_mcp.sandbox import mounts
from codegen_mcp.sandbox.remedies import show_bytes
from codegen_mcp.sandbox.report import describe
from codegen_mcp.server.signals import ShutdownSignals
from codegen_mcp.settings import Settings
from codegen_mcp.telemetry.logs import configure_logging

THREADS = 32
"""For work that blocks: asyncio's own six on a small machine are soon all busy with long work."""


async def serve(settings: Settings, announce: Callable[[str], object]) -> int:
    """Serve until told to stop; returns the exit code.

    The first signal drains: readiness fails, new work is refused, what runs may finish within
    ``drain_grace_s``. The second ends at once.
    """
    configure_logging(settings.log_level)
    if settings.private_mounts and os.geteuid() == 0:
        mounts.enter_private_namespace()
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="worker")
    asyncio.get_running_loop().set_default_executor(threads)
    async with ShutdownSignals() as signals, open_worker(settings) as worker:
        for line in start_up_lines(settings, worker.engine):
            announce(line)
        announce(f"worker {settings.worker_id} listening on {settings.host}:{worker.server.port}")
        for line in what_next(settings, worker.server.port):
            announce(line)
        settle_memory()
        await signals.drain.wait()
        announce("draining: no new work; a second signal ends at once")
        await worker.server.drain()
        exiting = asyncio.ensure_future(signals.exit.wait())
        quiet = asyncio.ensure_future(worker.engine.sessions.drain())
        try:
            await asyncio.wait([exiting, quiet], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in (exiting, quiet):
                future.cancel()
            await asyncio.gather(exiting, quiet, return_exceptions=True)
        await worker.engine.tasks.stop()  # whoever follows a task is told its end
        await worker.server.stop(0 if signals.exit.is_set() else 1)
    return 0


def settle_memory() -> None:
    """Tell the collector that what is here now stays, and to look less often at what comes.

    Calls make few cycles and many short-lived objects; at the default of 700 a collection would
    run in every second call.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def start_up_lines(settings: Settings, engine: Engine) -> list[str]:
    """Say who enforces what, how much, and what nobody does."""
    choice, volumes, detection = engine.choice, engine.host.volumes, engine.host.detection
    groups = f"cgroup-v{detection.driver.version}" if detection.driver else "no cgroup"
    lines = describe(
        choice.probe,
        details={
            "memory": f"{groups} {show_bytes(settings.memory_bytes)}",
            "pids": f"{settings.pids}",
            "cpu": f"{settings.cpu_millicores / 1000:g}",
            "disk": f"{volumes.name} {show_bytes(settings.disk_bytes)}",
        },
        facts={"uids": settings.uid_range} if os.geteuid() == 0 else {},
        rejected=choice.rejected,
    )
    if detection.refused:
        lacking = ", ".join(f"{name} ({why})" for name, why in detection.refused.items())
        lines.append(f"sandbox: WARNING no cgroup for {lacking}; to get it: {detection.fix}")
    if volumes.warning:
        lines.append(f"sandbox: WARNING {volumes.warning}")
    lines += reach_lines(settings.host, asks=settings.auth.asks, tls=settings.tls is not None)
    if settings.auth.asks:
        lines.append(
            "access: whoever is let in may use every session of this worker; a coordinator before "
            "it keeps principals apart"
        )
    return lines


def what_next(settings: Settings, port: int) -> list[str]:
    """Return lines to paste, for somebody who sees this for the first time."""
    code = (
        "from codegen_mcp.client import Sandbox; s = Sandbox.create(); "
        "print(s.run_python('print(6 * 7)').stdout, end=''); s.kill()"
    )
    return [
        "try it from another terminal:",
        f'  CODEGEN_MCP_ADDRESS=127.0.0.1:{port} {sys.executable} -c "{code}"',
    ]
