"""What each isolation level costs: one table of ratios beside a plain process.

A level that this machine cannot give is left out, with the reason. CONTAINER_IMAGE names the image
of container sessions, RUNSC_PATH another runsc. Times are p50 of few samples: only large
differences mean anything.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from pathlib import Path

import cases
from density import pss_kib
from processes import worker
from stats import Samples, Target

from codegen_mcp.client.connection import Connection

N = int(os.environ.get("BENCH_N", "60")) // 6
SESSIONS = 3
"""Idle ones, of which the memory is the mean."""
UIDS = range(410_000, 411_000)
"""Of this bench's sessions alone, so that their processes are known by their user."""
LEVELS = ("process-hardened", "bubblewrap", "container", "gvisor")
CALLS = """
import json, os, time

def each(count, action):
    best = 1e9
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(count):
            action()
        best = min(best, (time.perf_counter() - begun) / count)
    return best * 1e6

def write():
    with open("bench.tmp", "wb") as file:
        file.write(b"x" * 4096)
    os.unlink("bench.tmp")

with open("bench.dat", "wb") as file:
    file.write(b"x" * 4096)

def read():
    with open("bench.dat", "rb") as file:
        file.read()

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

print(json.dumps({
    "system call": each(5000, os.getppid),
    "stat": each(500, lambda: os.stat("bench.dat")),
    "read a 4 KiB file": each(200, read),
    "make and remove a file": each(100, write),
    "fork and wait": each(20, fork),
    "compute": each(1, lambda: sum(range(1_000_000))),
}))
"""
"""Microseconds of each, the best of five."""
Row = dict[str, float]


async def measure(python: Path) -> tuple[list[Samples], list[Target]]:
    """Measure every level and print the table; it has no targets."""
    plain, samples = await asyncio.to_thread(_plain, python), []
    table: dict[str, Row] = {}
    for level in LEVELS:
        try:
            table[level], more = await _level(level)
        except RuntimeError as error:
            lines = str(error).strip().splitlines()
            print(f"  {level}: {lines[-1][:200] if lines else 'not available'}", flush=True)
        else:
            samples += more
    _print(plain, table)
    return samples, []


def _plain(python: Path) -> Row:
    """A process without walls: spawned, run, gone."""
    spawned = Samples("spawn")
    for _ in range(N + 2):
        spawned.add(cases.spawn_interpreter(python))
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [python, "-c", CALLS], cwd=directory, capture_output=True, text=True, check=True
        )
    idle = subprocess.Popen([python, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1)
    assert idle.stdout is not None
    idle.stdout.readline()
    memory = pss_kib(idle.pid) / 1024
    idle.communicate(b"\n")
    one = spawned.p50
    ways = dict.fromkeys(("create (pooled)", "create (cold)", "run print(1)", "destroy"), one)
    return {**ways, "memory, MiB": memory, **json.loads(done.stdout)}


async def _level(level: str) -> tuple[Row, list[Samples]]:
    names = ("create (pooled)", "create (cold)", "run print(1)", "destroy")
    taken = {name: Samples(f"{level}: {name}") for name in names}
    settings = {
        "SANDBOX": level,
        "REQUIRE_ISOLATION": level,
        "UID_RANGE": f"{UIDS.start}-{UIDS.stop - 1}",
    }
    async with worker(POOL_SIZE="2", **settings) as (address, _), Connection(address) as w:
        fixed = await cases.create(w)
        result = await cases.execute(w, cases.run(fixed, CALLS))
        calls: Row = json.loads(result.typed_response.run_python.stdout)
        for number in range(N + 2):
            await cases.gap(0.15 if level in ("process-hardened", "bubblewrap") else 1.5)
            created = asyncio.ensure_future(cases.create(w))
            pooled = await cases.timed(created)
            await cases.execute(w, cases.run(created.result()))
            await cases.gap()
            ran = await cases.timed(cases.execute(w, cases.run(created.result())))
            gone = await cases.timed(cases.destroy(w, created.result()))
            if number >= 2:
                taken["create (pooled)"].add(pooled)
                taken["run print(1)"].add(ran)
                taken["destroy"].add(gone)
    async with worker(POOL_SIZE="0", **settings) as (address, _), Connection(address) as w:
        for number in range(SESSIONS):
            took = await cases.timed(cases.create(w))
            if number:
                taken["create (cold)"].add(took)
        await cases.gap(1.0)
        memory = sum(pss_kib(pid) for pid in _session_pids()) / 1024 / SESSIONS
    row = {name: one.p50 for name, one in taken.items()}
    return {**row, "memory, MiB": memory, **calls}, list(taken.values())


def _session_pids() -> list[int]:
    """Processes of this bench's session users; those of all descendants where it is not root."""
    if os.geteuid() != 0:
        from density import descendants

        return descendants(os.getpid())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "status").read_text()
            except OSError:
                continue
            uid = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))
            if int(uid) in UIDS:
                found.append(int(entry.name))
    return found


def _print(plain: Row, table: dict[str, Row]) -> None:
    print(f"\n  {'beside a plain process':<26} {'plain':>10}" + "".join(f"{n:>18}" for n in table))
    for name, base in plain.items():
        unit = "" if "MiB" in name else " ms" if "(" in name or name == "destroy" else " us"
        cells = "".join(f"{row[name] / base:>17.2f}x" for row in table.values())
        print(f"  {name:<26} {base:>7.2f}{unit:<3}{cells}")
    print("  (create, run and destroy: beside spawning an interpreter)\n")
