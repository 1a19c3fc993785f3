"""Something else fills the host's disk: nothing acknowledged is lost, and all goes on after it."""

import asyncio
import hashlib
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sm
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as te
from codegen_mcp.testing.driven import Driven, python, until
from codegen_mcp.testing.small_host import small_host
from codegen_mcp.testing.wire import RichError, Wire, dial
from codegen_mcp.testing.worker import (
    WorkerProcess,
    log_of,
    start_worker_process,
    state_directory,
)

MIB = 1024 * 1024
HOST = 256 * MIB
SETTINGS = {
    "max_sessions": 16,
    "pool_size": 1,
    "memory_bytes": 64 * MIB,
    "disk_bytes": 16 * MIB,
    "disk_reserve_bytes": 8 * MIB,
}
WRITERS = 3
RECORDS = 200
"""Of the last tasks of a session; 256 are kept."""
MOST_WAITING = 5
"""Sandboxes that the pool may have booted, and their disk reserved, before."""

pytestmark = pytest.mark.usefixtures("kernel_limits")


@pytest.fixture
async def host() -> AsyncIterator[Path]:
    async with state_directory() as state:
        with small_host(state.parent, HOST) as root:
            root.chmod(0o711)
            yield root


@dataclass
class Writer:
    """Writes all the time and remembers what was acknowledged."""

    session: Driven
    files: dict[str, str] = field(default_factory=dict)
    tasks: int = 0
    answers: list[tuple[int, te.TaskRequest, te.TaskResult]] = field(default_factory=list)
    """Which task of the session's it was, its request and its result."""
    refused: list[str] = field(default_factory=list)
    """Status of what was not written."""
    unrecorded: list[tuple[str, str]] = field(default_factory=list)
    """Status and reason of what was not run, for want of room to note that it was."""
    written: int = 0

    async def work(self, stop: asyncio.Event) -> None:
        dice = random.Random(self.session.id)
        while not stop.is_set():
            data = dice.randbytes(dice.randrange(65536))
            path = f"files/{self.written % 60}"  # half the volume at most
            await self.write(path, data)
            if self.written % 10 == 0:
                await self.upload("files/large", dice.randbytes(2 * MIB))
            if self.written % 4 == 0:
                await self.run(f"print({self.written})", f"{self.written}\n".encode())
            self.written += 1

    async def write(self, path: str, data: bytes) -> None:
        self.tasks += 1
        ran = await self.session.write(path, data)
        if ran.error.code:
            self.refused.append(ran.error.code)
            return
        sha256 = ran.result.typed_response.fs_write.sha256
        assert sha256 == hashlib.sha256(data).hexdigest()
        self.files[path] = sha256

    async def upload(self, path: str, data: bytes) -> None:
        try:
            summary = await self.session.upload(
                path, [data[: len(data) // 2], data[len(data) // 2 :]]
            )
        except aio.AioRpcError as error:
            self.refused.append(error.code().name)
            return
        assert summary.sha256 == hashlib.sha256(data).hexdigest()
        self.files[path] = summary.sha256

    async def run(self, code: str, stdout: bytes) -> None:
        self.tasks += 1
        number = len(self.answers) + 1
        request = self.session.request(python(code), task_id=f"t{number}", sequence=number)
        try:
            *_, last = [message async for message in self.session.wire.tasks.ExecuteTask(request)]
        except aio.AioRpcError as error:
            self.unrecorded.append((error.code().name, RichError(error).info.reason))
            return
        assert last.result.typed_response.run_python.stdout.encode() == stdout, last
        self.answers.append((self.tasks, request, last.result))

    async def check(self, wire: Wire) -> None:
        """Everything that was acknowledged is there."""
        session = Driven(wire, self.session.id)
        for path, sha256 in self.files.items():
            assert await session.sha256(path) == sha256, path
        kept = [answer for answer in self.answers if self.tasks - answer[0] < RECORDS]
        for _, request, result in kept:
            *_, last = [message async for message in wire.tasks.ExecuteTask(request)]
            assert last.result == result


@contextmanager
def filling(host: Path) -> Iterator[threading.Event]:
    """Take every byte of the host that becomes free; yields an event that says when it was full."""
    full, stop = threading.Event(), threading.Event()

    def fill() -> None:
        with (host / "filler").open("wb", buffering=0) as file:
            size = 65536
            while not stop.is_set():
                try:
                    file.write(b"\xff" * size)
                    size = 65536
                except OSError:
                    if size == 4096:
                        full.set()
                        stop.wait(0.002)
                    size = 4096

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield full
    finally:
        stop.set()
        thread.join()
        (host / "filler").unlink()


@pytest.mark.parametrize("volume", ["loop", "plain"])
async def test_a_full_host_costs_nothing_that_was_acknowledged(host: Path, volume: str):
    settings = {**SETTINGS, "volume": volume}
    state = host / "state"
    log_of(state).symlink_to(host.with_name("worker.log"))
    worker = await start_worker_process(state, **settings)
    try:
        async with dial(worker.address) as wire:
            writers = [Writer(Driven(wire, await wire.session())) for _ in range(WRITERS)]
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for writer in writers:
                    group.create_task(writer.work(stop))
                await progress(writers)
                with filling(host) as full:
                    assert await asyncio.to_thread(full.wait, 60.0)
                    await progress(writers)
                    await refusals(wire, worker)
                    for writer in writers:
                        await large_output_still_comes(writer.session)
                    stop.set()
            for writer in writers:
                await writer.check(wire)
                refused = set(writer.refused)
                assert refused <= {"RESOURCE_EXHAUSTED"}, (refused, errors_in(worker.log))
                assert set(writer.unrecorded) <= {("RESOURCE_EXHAUSTED", "DISK_FULL")}
                assert bool(refused) == (volume == "plain")  # loop has reserved what it promised
            await all_goes_on(wire, writers)
        await worker.kill()
        worker = await start_worker_process(state, **settings)
        async with dial(worker.address) as wire:
            for writer in writers:
                await writer.check(wire)
    finally:
        if worker.process.returncode is not None:  # the next one clears what it left
            worker = await start_worker_process(state, **settings)
        await worker.stop()


async def progress(writers: list[Writer]) -> None:
    """Wait until each has done some more."""
    goals = [writer.written + 12 for writer in writers]
    moved = await until(
        lambda: all(w.written >= goal for w, goal in zip(writers, goals, strict=True)), 30.0
    )
    assert moved


async def refusals(wire: Wire, worker: WorkerProcess) -> None:
    """New sessions are refused in words, but for those whose disk was reserved before."""
    made: list[str] = []

    async def make_until_refused() -> None:
        while len(made) < MOST_WAITING:
            made.append(await wire.session())

    with pytest.raises(aio.AioRpcError) as caught:
        await make_until_refused()
    refusal = RichError(caught.value)
    assert refusal.code.name == "RESOURCE_EXHAUSTED", (caught.value, worker.log)
    assert refusal.info.reason == "DISK_FULL"
    assert refusal.has_retry
    assert "disk" in refusal.message
    for session_id in made:
        session = Driven(wire, session_id)
        assert (await session.python("print(1)")).ok
        await session.destroy()


async def large_output_still_comes(session: Driven) -> None:
    """Output is kept on disk for those who come late; who listens gets it all the same."""
    ran = await session.python("for n in range(200_000): print('%015d' % n)")
    assert ran.ok, ran
    assert ran.stdout == b"".join(b"%015d\n" % number for number in range(200_000))


async def all_goes_on(wire: Wire, writers: list[Writer]) -> None:
    async def session_again() -> str | None:
        with suppress(aio.AioRpcError):
            return await wire.session()
        return None

    fresh = Driven(wire, await until(session_again, 15.0))
    assert (await fresh.python("print(1)")).ok
    assert not (await fresh.write("a", b"b")).error.code
    await fresh.destroy()
    for writer in writers:
        writer.refused.clear()
        writer.unrecorded.clear()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(writer.work(stop))
        await progress(writers)
        stop.set()
    for writer in writers:
        assert not writer.refused
        assert not writer.unrecorded
        await writer.check(wire)
        request = sm.UpdateSessionMetadataRequest(session_id=writer.session.id, metadata={"a": "b"})
        assert (await wire.sessions.UpdateSessionMetadata(request)).metadata["a"] == "b"


def errors_in(log: str) -> list[str]:
    return [line for line in log.splitlines() if '"level": "error"' in line]
