from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Cancelled, InvalidRequest, NotFound, WorkerError, WrongState
from codegen_mcp.engine.workspace import SessionWorkspace
from codegen_mcp.engine.workspace_threads import FileThreads, Stop

MIB = 1024 * 1024


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[SessionWorkspace]:
    workspace = SessionWorkspace(tmp_path, None)
    yield workspace
    await workspace.aclose()


async def given(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def upload(
    workspace: SessionWorkspace,
    chunks: AsyncIterator[bytes],
    *,
    path: str = "made/f",
    size: int | None = None,
    sha256: str | None = None,
) -> tuple[int, str]:
    return await workspace.write_chunks(
        path, chunks, create_dirs=True, mode=None, expected_size=size, expected_sha256=sha256
    )


def descriptors() -> set[str]:
    """What is open: files and pipes, not those of the event loop and the listing itself."""
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return {os.readlink(link) for link in links if os.path.lexists(link)}


async def test_a_stream_is_written_and_read_back(workspace: SessionWorkspace) -> None:
    chunks = [os.urandom(size) for size in (0, 1, 5 * MIB, 0, 17)]
    data = b"".join(chunks)
    digest = hashlib.sha256(data).hexdigest()
    answer = await upload(workspace, given(*chunks), size=len(data), sha256=digest.upper())
    assert answer == (len(data), digest)
    got = [chunk async for chunk in workspace.read_chunks("made/f", MIB)]
    assert b"".join(got) == data
    assert max(len(chunk) for chunk in got) == MIB


async def test_an_empty_stream_is_an_empty_file(workspace: SessionWorkspace) -> None:
    assert (await upload(workspace, given(), size=0))[0] == 0
    assert [chunk async for chunk in workspace.read_chunks("made/f", 10)] == []


async def test_a_hundred_megabytes_go_through_in_flat_memory(workspace: SessionWorkspace) -> None:
    chunk = os.urandom(MIB)

    async def many() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield chunk

    tracemalloc.start()
    try:
        size, digest = await upload(workspace, many())
        read = hashlib.sha256()
        async for got in workspace.read_chunks("made/f", MIB):
            read.update(got)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 100 * MIB
    assert read.hexdigest() == digest
    assert peak < 8 * MIB


@pytest.mark.parametrize(
    ("size", "sha256"), [(3, None), (5, None), (None, "0" * 64), (4, "0" * 64), (0, None)]
)
async def test_a_stream_that_is_not_what_was_announced_leaves_nothing(
    workspace: SessionWorkspace, size: int | None, sha256: str | None
) -> None:
    with pytest.raises(InvalidRequest, match="announced"):
        await upload(workspace, given(b"ab", b"cd"), size=size, sha256=sha256)
    assert os.listdir(workspace.root) == []


async def test_a_stream_that_breaks_leaves_the_old_file(workspace: SessionWorkspace) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError

    await upload(workspace, given(b"old"))
    with pytest.raises(ConnectionError):
        await upload(workspace, broken())
    assert (workspace.root / "made/f").read_bytes() == b"old"
    assert os.listdir(workspace.root / "made") == ["f"]


async def test_a_cancelled_stream_leaves_nothing_open_and_nothing_behind(
    workspace: SessionWorkspace,
) -> None:
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * MIB
            started.set()

    before = descriptors()
    task = asyncio.ensure_future(upload(workspace, endless()))
    await asyncio.wait_for(started.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(workspace.root) == []
    assert descriptors() == before


async def test_a_reader_that_leaves_early_closes_the_file(workspace: SessionWorkspace) -> None:
    await upload(workspace, given(b"x" * 100))
    before = descriptors()
    chunks = workspace.read_chunks("made/f", 10)
    assert await anext(chunks) == b"x" * 10
    assert len(descriptors()) == len(before) + 1
    await chunks.aclose()  # type: ignore[attr-defined]
    assert descriptors() == before


async def test_a_stream_reads_the_file_that_was_there_when_it_began(
    workspace: SessionWorkspace,
) -> None:
    await upload(workspace, given(b"old" * 10))
    chunks = workspace.read_chunks("made/f", 3)
    got = [await anext(chunks)]
    await upload(workspace, given(b"new" * 100))
    got += [chunk async for chunk in chunks]
    assert b"".join(got) == b"old" * 10


@pytest.mark.parametrize("chunk_bytes", [0, -1, 1 << 40])
async def test_a_chunk_size_without_meaning_is_refused(
    workspace: SessionWorkspace, chunk_bytes: int
) -> None:
    await upload(workspace, given(b"x"))
    with pytest.raises(InvalidRequest, match="chunk_bytes"):
        await anext(workspace.read_chunks("made/f", chunk_bytes))
    with pytest.raises(NotFound):
        await anext(workspace.read_chunks("nothing", 1))


async def test_closing_ends_streams_and_refuses_calls(tmp_path: Path) -> None:
    before = descriptors()
    workspace = SessionWorkspace(tmp_path, None)
    await upload(workspace, given(b"x" * 100), path="f")
    download = workspace.read_chunks("f", 10)
    await anext(download)
    half = asyncio.Event()

    async def waits_for_ever() -> AsyncIterator[bytes]:
        yield b"half"
        half.set()
        await closed.wait()
        yield b"rest"

    closed = asyncio.Event()
    uploading = asyncio.ensure_future(upload(workspace, waits_for_ever(), path="g"))
    await asyncio.wait_for(half.wait(), 5)

    await workspace.aclose()
    await workspace.aclose()
    workspace.close()

    assert descriptors() == before
    closed.set()
    with pytest.raises(WrongState, match="ended"):
        await uploading
    with pytest.raises(WrongState, match="ended"):
        await anext(download)
    with pytest.raises(WrongState, match="closed"):
        await workspace.stat("f")
    assert os.listdir(tmp_path) == ["f"]


async def test_closing_stops_work_in_a_thread_before_descriptors_go(tmp_path: Path) -> None:
    workspace = SessionWorkspace(tmp_path, None)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 42)
    hashing = asyncio.ensure_future(workspace.sha256("sparse"))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await workspace.aclose()
        with pytest.raises(Cancelled):
            await hashing


async def test_cancelling_a_long_call_ends_its_thread(workspace: SessionWorkspace) -> None:
    with open(workspace.root / "sparse", "wb") as file:
        file.truncate(1 << 42)
    before = descriptors()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await workspace.sha256("sparse")
    assert descriptors() == before


async def test_cancelling_twice_still_waits_for_the_thread() -> None:
    threads = FileThreads(None)
    running, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work(stop: Stop) -> None:
        running.set()
        release.wait(5)
        ended.set()

    task = asyncio.ensure_future(threads.run(work))
    await asyncio.to_thread(running.wait, 5)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    threads.close(lambda: None)


async def test_work_that_waits_for_a_thread_is_taken_back_when_cancelled() -> None:
    with ThreadPoolExecutor(1) as executor:
        threads = FileThreads(executor)
        release = threading.Event()
        first = asyncio.ensure_future(threads.run(lambda stop: release.wait(5)))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(threads.run(lambda stop: pytest.fail("must not run")))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        release.set()
        assert await first
        threads.close(lambda: None)
        with pytest.raises(WrongState):
            await threads.run(lambda stop: None)


async def test_an_unknown_failure_of_the_file_system_is_a_fault_of_ours() -> None:
    from codegen_mcp.engine.workspace_errors import translate

    error = translate(OSError(5, "Input/output error"), b"f")
    assert type(error) is WorkerError
    assert "Input/output error" in error.message
