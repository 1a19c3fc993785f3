"""./dev bench [names]: every target beside its reference in one run; a missed target exits 1.

R0 is `venv/bin/python -c pass` of the sessions' interpreter, with bytecode; the bare references
are grpc.aio with the same messages. Cases and references are interleaved, so that what disturbs
one disturbs the other: trust the ratios, not the milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cases
import checkpoint
import coordinator
import density
import egress
import isolation
import packages
import tool_calls
from processes import bare_server, worker
from stats import HEADER, Samples, Target

from codegen_mcp.client.connection import Connection
from codegen_mcp.sandbox import mounts

N = int(os.environ.get("BENCH_N", "60"))
FIRST = "run.python print(1), a session's first"
FAST = ("GetSessionStatus", "echo", "fs.read 4 KiB", "fs.write 4 KiB")


def reference_python(directory: Path) -> Path:
    """Make the venv of R0 from the interpreter that sessions use."""
    subprocess.run(
        [
            Path(sys.executable).parent / "uv",
            "venv",
            "-q",
            "--python",
            "/usr/bin/python3",
            directory,
        ],
        check=True,
    )
    python = directory / "bin" / "python"
    subprocess.run([python, "-c", "import json"], check=True)
    return python


async def latency(python: Path) -> tuple[list[Samples], list[Target]]:
    """Concurrency 1: pooled create, run, fast calls, destroy."""
    names = ("R0", "run.python print(1)", "CreateSession (pool)", FIRST, "DestroySession", *FAST)
    s = {name: Samples(name) for name in names}
    bare = {name: Samples(f"bare {name}") for name in FAST}
    async with worker() as (address, _), bare_server() as bare_address:
        async with Connection(address) as w, Connection(bare_address) as b:
            fixed = await cases.create(w)
            await cases.execute(w, cases.write(fixed))
            for number in range(N + 5):
                warm = number < 5  # the first few are not counted
                sample = asyncio.to_thread(cases.spawn_interpreter, python)
                r0 = await sample
                await cases.gap(0.15)  # the pool refills
                ran = await cases.timed(cases.execute(w, cases.run(fixed)))
                await cases.gap()
                created = asyncio.ensure_future(cases.create(w))
                took = await cases.timed(created)
                session = created.result()
                await cases.gap()
                first = await cases.timed(cases.execute(w, cases.run(session)))
                await cases.gap()
                gone = await cases.timed(cases.destroy(w, session))
                if not warm:
                    s["R0"].add(r0)
                    s["CreateSession (pool)"].add(took)
                    s["run.python print(1)"].add(ran)
                    s[FIRST].add(first)
                    s["DestroySession"].add(gone)
            calls = {
                "GetSessionStatus": lambda c: cases.status(c, fixed),
                "echo": lambda c: cases.execute(c, cases.echo(fixed)),
                "fs.read 4 KiB": lambda c: cases.execute(c, cases.read(fixed)),
                "fs.write 4 KiB": lambda c: cases.execute(c, cases.write(fixed)),
            }
            for number in range(4 * N + 5):
                for name in FAST:
                    pair = [(w, s[name]), (b, bare[name])]
                    for connection, samples in pair if number % 2 else pair[::-1]:
                        await cases.gap(0.005)
                        took = await cases.timed(calls[name](connection))
                        if number >= 5:
                            samples.add(took)
    r0 = s["R0"].p50
    targets = [
        Target("CreateSession from the pool / R0", s["CreateSession (pool)"].p50 / r0, 0.20),
        Target("run.python print(1) / R0", s["run.python print(1)"].p50 / r0, 0.35),
        Target("DestroySession / R0", s["DestroySession"].p50 / r0, 0.40),
        *(Target(f"{name} / bare", s[name].p50 / bare[name].p50, 1.5) for name in FAST),
    ]
    return [*s.values(), *bare.values()], targets


async def cold(python: Path) -> tuple[list[Samples], list[Target]]:
    """An empty pool."""
    r0, made = Samples("R0 (beside cold)"), Samples("CreateSession (no pool)")
    async with worker(POOL_SIZE="0") as (address, _), Connection(address) as w:
        for number in range(N // 3 + 2):
            base = await asyncio.to_thread(cases.spawn_interpreter, python)
            created = asyncio.ensure_future(cases.create(w))
            took = await cases.timed(created)
            await cases.destroy(w, created.result())
            await cases.gap(0.1)
            if number >= 2:
                r0.add(base)
                made.add(took)
    return [r0, made], [Target("CreateSession, empty pool / R0", made.p50 / r0.p50, 6.0)]


async def throughput(python: Path) -> tuple[list[Samples], list[Target]]:
    """Concurrency 10 and 50 against spawning interpreters."""
    samples: list[Samples] = []
    rates: dict[str, float] = {}
    async with worker(MAX_SESSIONS="60", POOL_SIZE="8") as (address, _):
        async with Connection(address) as w:
            sessions = [await cases.create(w) for _ in range(50)]
            for concurrency in (10, 50):
                mine = Samples(f"run.python at concurrency {concurrency}")
                total = concurrency * 8

                async def loop(session: str, mine: Samples = mine) -> None:
                    for _ in range(8):
                        mine.add(await cases.timed(cases.execute(w, cases.run(session))))

                took = await cases.timed(asyncio.gather(*map(loop, sessions[:concurrency])))
                rates[f"runs {concurrency}"] = total / took
                spawned = Samples(f"spawned interpreters at concurrency {concurrency}")

                async def spawn(spawned: Samples = spawned) -> None:
                    for _ in range(4):
                        process = await asyncio.create_subprocess_exec(
                            python, "-c", "print(1)", stdout=-3, env={"PATH": "/usr/bin:/bin"}
                        )
                        spawned.add(await cases.timed(process.wait()))

                took = await cases.timed(asyncio.gather(*(spawn() for _ in range(concurrency))))
                rates[f"spawn {concurrency}"] = concurrency * 4 / took
                for name, make in (("echo", cases.echo), ("fs.write 4 KiB", cases.write)):
                    fast = Samples(f"{name} at concurrency {concurrency}")

                    async def call(session: str, fast: Samples = fast, make=make) -> None:
                        for _ in range(10):
                            fast.add(await cases.timed(cases.execute(w, make(session))))

                    await asyncio.gather(*map(call, sessions[:concurrency]))
                    samples.append(fast)
                samples += [mine, spawned]
            for session in sessions:
                await cases.destroy(w, session)
    for name, rate in rates.items():
        print(f"  {name}: {rate:.0f} per second")
    ratio = rates["spawn 50"] / rates["runs 50"]
    return samples, [Target("spawned per second / runs per second, at 50", ratio, 1 / 3)]


GROUPS = {
    "latency": latency,
    "cold": cold,
    "throughput": throughput,
    "density": density.measure,
    "packages": packages.measure,
    "checkpoint": checkpoint.measure,
    "mcp": tool_calls.measure,
    "coordinator": coordinator.measure,
    "egress": egress.measure,
    "isolation": isolation.measure,
}


async def main(names: list[str]) -> int:
    samples: list[Samples] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as directory:
        python = reference_python(Path(directory) / "venv")
        for name in names or GROUPS:
            print(f"{name} ...", flush=True)
            more_samples, more_targets = await GROUPS[name](python)
            samples += more_samples
            targets += more_targets
    print("\n" + HEADER)
    for sample in samples:
        print(sample.row())
    print()
    for target in targets:
        print(target.row())
    missed = [t for t in targets if not t.met]
    met = len(targets) - len(missed)
    print(f"\n{met} of {len(targets)} targets met; load {os.getloadavg()[0]:.1f}")
    return 1 if missed else 0


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if os.geteuid() == 0:
        mounts.enter_private_namespace()  # before any group starts a thread
    sys.exit(asyncio.run(main(sys.argv[1:])))
