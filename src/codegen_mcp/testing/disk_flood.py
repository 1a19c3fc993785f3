"""Many sessions of a real worker fill their disks at once, on a host that cannot hold them all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from codegen_mcp.core.limits import KIB, MIB
from codegen_mcp.sandbox.volumes.space import free_on
from codegen_mcp.testing.driven import Driven, Ran, until
from codegen_mcp.testing.wire import Wire, dial
from codegen_mcp.testing.worker import WorkerProcess, start_worker_process

FILL = """
number = 0
while True:
    with open(f'flood-{number}', 'wb') as file:
        file.write(b'x' * (1 << 20))
    number += 1
"""
DRAIN = """
import os
for name in os.listdir('.'):
    if name.startswith('flood-'):
        os.unlink(name)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """How large it is."""

    volume: str
    sessions: int
    quota_bytes: int
    reserve_bytes: int

    def settings(self) -> dict[str, object]:
        """Of the worker."""
        return {
            "volume": self.volume,
            "disk_overcommit": True,
            "disk_bytes": self.quota_bytes,
            "disk_reserve_bytes": self.reserve_bytes,
            "memory_bytes": 96 * MIB,
            "max_sessions": self.sessions + 8,
            "pool_size": 1,
        }


@dataclass(slots=True)
class Seen:
    """What came of it."""

    fills: list[Ran] = field(default_factory=list)
    witness: list[Ran] = field(default_factory=list)
    """Runs of a session that only reads and computes meanwhile."""
    least_free_bytes: int = 1 << 62
    neighbour_writes: int = 0
    """Of another program on the same disk, each on disk before the next."""
    neighbour_errors: list[OSError] = field(default_factory=list)


async def flood(state: Path, size: Flood) -> Seen:
    """Run it, and check that everything acknowledged is there: at once, and after a killed worker.

    Raises:
        AssertionError: Something acknowledged is not there.
    """
    seen = Seen()
    assert size.sessions * size.quota_bytes > free_on(state.parent)
    worker = await start_worker_process(state, **size.settings())
    try:
        async with dial(worker.address) as wire:
            sessions = [Driven(wire, await wire.session()) for _ in range(size.sessions)]
            witness = Driven(wire, await wire.session())
            kept = {one.id: await _acknowledged(one, "kept") for one in [*sessions, witness]}
            assert all(kept.values())
            with _neighbour(state.parent, seen):
                async with _witnessing(witness, kept[witness.id], seen):
                    seen.fills = list(
                        await asyncio.gather(*(one.python(FILL, timeout_s=300) for one in sessions))
                    )
            await _all_there(wire, kept)
            for one in sessions[1::2]:
                await one.destroy()
                del kept[one.id]
            assert await until(
                lambda: free_on(state.parent) > size.reserve_bytes + 4 * MIB, within_s=60.0
            )
            ran = await sessions[0].python(DRAIN)
            assert ran.ok, ran
            # A watched directory is counted a moment later.
            sha256 = await until(lambda: _acknowledged(sessions[0], "after"), within_s=30.0)
            assert sha256
        await worker.kill()
        worker = await start_worker_process(state, **size.settings())
        async with dial(worker.address) as wire:
            await _all_there(wire, kept)
            assert await Driven(wire, sessions[0].id).sha256("after") == sha256
            for session_id in kept:
                await Driven(wire, session_id).destroy()
    finally:
        await _end(worker, state, size)
    return seen


async def _end(worker: WorkerProcess, state: Path, size: Flood) -> None:
    if worker.process.returncode is not None:  # the next one clears what it left
        worker = await start_worker_process(state, **size.settings())
    await worker.stop()


async def _acknowledged(session: Driven, path: str) -> str:
    """Write a file; its hash, or nothing when it was refused."""
    data = os.urandom(64 * KIB)
    ran = await session.write(path, data)
    if ran.error.code:
        return ""
    sha256: str = ran.result.typed_response.fs_write.sha256
    assert sha256 == hashlib.sha256(data).hexdigest(), ran
    return sha256


async def _all_there(wire: Wire, kept: dict[str, str]) -> None:
    for session_id, sha256 in kept.items():
        assert await Driven(wire, session_id).sha256("kept") == sha256, session_id


@asynccontextmanager
async def _witnessing(session: Driven, sha256: str, seen: Seen) -> AsyncIterator[None]:
    """Read and compute in a session for as long as the block lasts, once at least."""
    stop = asyncio.Event()
    code = f"""
import hashlib
assert hashlib.sha256(open('kept', 'rb').read()).hexdigest() == {sha256!r}
print(sum(range(100_000)))
"""

    async def work() -> None:
        while True:
            seen.witness.append(await session.python(code, timeout_s=120))
            if stop.is_set():
                return

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        try:
            yield
        finally:
            stop.set()


@contextmanager
def _neighbour(host: Path, seen: Seen) -> Iterator[None]:
    """Write a small file again and again as another program would, and watch what is free."""
    stop = threading.Event()

    def work() -> None:
        with (host / "neighbour").open("wb", buffering=0) as file:
            while not stop.wait(0.002):
                seen.least_free_bytes = min(seen.least_free_bytes, free_on(host))
                try:
                    file.truncate(0)
                    os.pwrite(file.fileno(), b"n" * 64 * KIB, 0)
                    os.fsync(file.fileno())
                    seen.neighbour_writes += 1
                except OSError as error:
                    seen.neighbour_errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
