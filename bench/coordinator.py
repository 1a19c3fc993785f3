"""What a coordinator in a process of its own costs beside calling a worker directly.

Both ways have a worker of their own, with the same settings, and take turns; all processes share
the machine's cores, so at high concurrency this compares the work that a call makes in all of them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import cases
import grpc
import processes
from stats import Samples, Target

from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as te
from codegen_mcp.client.connection import Connection

CONCURRENCY = (1, 16, 64)
ROUNDS = 6
N = int(os.environ.get("BENCH_N", "60"))
CALLS = {"echo": 16 * N, "run_python": 3 * N}
"""Of each way and tool, at each concurrency; more where that gives a session too few."""
A_SESSION = {"echo": 8, "run_python": 2}
"""Calls of one session in a round, at least: the first ones of all come at once."""
SETTINGS = {"MAX_SESSIONS": "70", "DISK_BYTES": str(32 << 20), "DISK_RESERVE_BYTES": "0"}
FACTOR, ADDED_MS = 1.5, 2.0
"""The p50 through a coordinator may be so many times the direct one, and so much more."""
TOOLS: dict[str, Callable[[str], te.TaskRequest]] = {"echo": cases.echo, "run_python": cases.run}


async def measure(python: Path) -> tuple[list[Samples], list[Target]]:
    """Both ways at every concurrency, in turns."""
    samples: list[Samples] = []
    targets: list[Target] = []
    async with AsyncExitStack() as stack:
        address, _ = await stack.enter_async_context(processes.worker(**SETTINGS))
        direct = await stack.enter_async_context(Connection(address))
        routed_address = await stack.enter_async_context(processes.coordinator(AUDIT_DIR="auto"))
        await stack.enter_async_context(
            processes.worker(**SETTINGS, COORDINATOR_ADDR=routed_address)
        )
        routed = await stack.enter_async_context(Connection(routed_address))
        await joined(routed)
        most = max(CONCURRENCY)
        sessions = {way: [await cases.create(way) for _ in range(most)] for way in (direct, routed)}
        for name, make in TOOLS.items():
            for concurrency in CONCURRENCY:
                taken = {
                    direct: Samples(f"{name} direct, at {concurrency}"),
                    routed: Samples(f"{name} by coordinator, at {concurrency}"),
                }
                ways = [direct, routed]
                for number in range(ROUNDS + 1):
                    for way in ways if number % 2 else ways[::-1]:
                        count = max(A_SESSION[name] * concurrency, CALLS[name] // ROUNDS)
                        times = await load(way, make, sessions[way][:concurrency], count)
                        if number:  # the first round warms up
                            for seconds in times:
                                taken[way].add(seconds)
                samples += taken.values()
                bound = FACTOR * taken[direct].p50 + ADDED_MS
                targets.append(
                    Target(
                        f"{name} by coordinator / (1.5 x direct + 2 ms), p50 at {concurrency}",
                        taken[routed].p50 / bound,
                        1.0,
                    )
                )
    return samples, targets


async def load(
    way: Connection, make: Callable[[str], te.TaskRequest], sessions: list[str], count: int
) -> list[float]:
    """Run so many calls, one after the other in each session."""
    left = iter(range(count))
    times: list[float] = []

    async def one(session: str) -> None:
        for _ in left:
            began = time.perf_counter()
            await cases.execute(way, make(session))
            times.append(time.perf_counter() - began)

    await asyncio.gather(*map(one, sessions))
    return times


async def joined(routed: Connection) -> None:
    """Return when the coordinator has a worker."""
    until = time.monotonic() + 60
    while True:
        try:
            await cases.destroy(routed, await cases.create(routed))
        except grpc.RpcError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.1)
        else:
            return
