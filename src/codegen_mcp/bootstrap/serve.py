"""The worker as a process: signals, and words for people."""

from __future__ import annotations

import sys
from collections.abc import Callable

from codegen_mcp.bootstrap.engine import Engine
from codegen_mcp.bootstrap.isolation import sandbox_lines
from codegen_mcp.bootstrap.lifecycle import beside, joining
from codegen_mcp.bootstrap.process import prepare_process, settle_memory, wind_down
from codegen_mcp.bootstrap.worker import open_worker
from codegen_mcp.coordinator.auth.reach import reach_lines
from codegen_mcp.engine.uninterrupted import first_of
from codegen_mcp.server.signals import ShutdownSignals
from codegen_mcp.settings import Settings


async def serve(settings: Settings, announce: Callable[[str], object]) -> int:
    """Serve until told to stop; returns the exit code.

    The first signal drains: readiness fails, new work is refused, what runs may finish within
    ``drain_grace_s``. The second ends at once.
    """
    prepare_process(settings)
    async with ShutdownSignals() as signals, open_worker(settings) as worker:
        for line in start_up_lines(settings, worker.engine):
            announce(line)
        announce(f"worker {settings.worker_id} listening on {settings.host}:{worker.server.port}")
        agent = worker.agent
        for line in what_next(settings, worker.server.port) if agent is None else ():
            announce(line)
        settle_memory()
        if agent is None:
            await signals.drain.wait()
        else:
            await first_of(signals.drain.wait(), agent.drain_asked.wait())
        announce("draining: no new work; a second signal ends at once")
        await worker.server.drain()
        if agent is not None:
            agent.tell_now()
        await wind_down(signals, worker.engine)
        if agent is not None:
            if not signals.exit.is_set():
                await first_of(agent.emptied(), signals.exit.wait())
            await first_of(agent.leave("drained"), signals.exit.wait())
        await worker.server.stop(0 if signals.exit.is_set() else 1)
    return 0


def start_up_lines(settings: Settings, engine: Engine) -> list[str]:
    """Say who enforces what, how much, and who may call."""
    lines = sandbox_lines(settings, engine.host, engine.choice)
    if settings.coordinator_addr:
        when = "" if joining(settings).required else "once this worker has joined it, "
        lines.append(
            f"access: {when}only the coordinator at {settings.coordinator_addr} may call, with a "
            "token of this start"
        )
        if settings.client_tls is None and not beside(settings):
            lines.append(
                "access: WARNING without TLS (TLS_CA) code, files and tokens can be read on the "
                f"way to {settings.coordinator_addr}"
            )
        return lines
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
