"""A refill from the worker's side: what is fed, how it ends, and that nothing stays behind."""

import asyncio
import gc
import gzip
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_mcp.core.errors import (
    Corrupt,
    LimitExceeded,
    SandboxUnavailable,
    StoreUnavailable,
    WorkerError,
)
from codegen_mcp.core.limits import MIB, RunLimits
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, EndedBy, Outcome, Stream
from codegen_mcp.engine.checkpoints.refill import RefillReport, refill
from codegen_mcp.engine.checkpoints.refill_feed import ArchiveSource, Inflating
from codegen_mcp.engine.checkpoints.tree_compare import check_volume
from codegen_mcp.sandbox.base import Sandbox
from codegen_mcp.testing.refill_rig import ChildSandbox, Saved, in_pieces, make_volume, save
from codegen_mcp.testing.scripted_sandbox import ScriptedSandbox

LIMITS = RunLimits(timeout_s=20, output_bytes=MIB)


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    root = make_volume(tmp_path / "source")
    (root / "workspace/big").write_bytes(os.urandom(3 * MIB))
    (root / "workspace/d").mkdir()
    (root / "workspace/d/small").write_text("small")
    first = save(root)
    (root / "workspace/d/small").write_text("smaller")
    return save(root, first)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return make_volume(tmp_path / "target")


async def do(
    sandbox: Sandbox,
    saved: Saved,
    target: Path,
    *,
    archives: list[ArchiveSource] | None = None,
    limits: RunLimits = LIMITS,
) -> RefillReport:
    return await refill(
        sandbox,
        manifest=saved.manifest,
        manifest_lines=saved.lines,
        archives=saved.sources() if archives is None else archives,
        limits=limits,
        python=Path(sys.executable),
        root=target,
    )


def open_descriptors() -> int:
    gc.collect()  # what tests before this one left behind is closed by it, at any moment
    return len(os.listdir("/proc/self/fd"))


async def test_a_chain_is_put_back_and_reported(saved: Saved, target: Path) -> None:
    before = open_descriptors()
    report = await do(ChildSandbox(), saved, target)
    assert (report.files, report.directories, report.names) == (2, 3, 5)
    assert report.total_bytes == 3 * MIB + len("smaller")
    check_volume(target, saved.manifest.entries)
    assert (target / "workspace/d/small").read_text() == "smaller"
    assert open_descriptors() == before


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_pieces_may_be_cut_anywhere(tmp_path: Path, target: Path, size: int) -> None:
    root = make_volume(tmp_path / "source2")
    (root / "workspace/a").write_bytes(bytes(range(256)) * 3)
    saved = save(root)
    await do(ChildSandbox(), saved, target, archives=saved.sources(size))
    check_volume(target, saved.manifest.entries)


async def other(saved: Saved, data: bytes, inflated: int = 0) -> list[ArchiveSource]:
    """The chain with other bytes as its last archive."""
    sources = saved.sources()
    for one in sources[-1:]:
        await one.pieces.aclose()  # type: ignore[attr-defined]
    count = inflated or len(saved.tar)
    sources[-1] = ArchiveSource(number=2, inflated_bytes=count, pieces=in_pieces(data))
    return sources


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"more",
        lambda data: data + gzip.compress(b"one more member"),
        lambda data: b"",
        lambda data: b"no gzip" + data,
        lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:],
        lambda data: gzip.compress(bytes(64 * MIB), 1),
    ],
    ids=["cut", "half", "garbage", "member", "empty", "start", "checksum", "bomb"],
)
async def test_a_damaged_archive_is_corrupt_and_ends_the_run(
    saved: Saved, target: Path, damage: object
) -> None:
    before = open_descriptors()
    archives = await other(saved, damage(saved.archive))  # type: ignore[operator]
    with pytest.raises(Corrupt, match="number 2"):
        await do(ChildSandbox(), saved, target, archives=archives)
    assert open_descriptors() == before


async def test_a_wrong_tar_is_corrupt_and_names_the_place(saved: Saved, target: Path) -> None:
    tar = saved.tar.replace(b"smaller", b"SMALLER")
    archives = await other(saved, gzip.compress(tar), len(tar))
    with pytest.raises(Corrupt, match=r"sha256.*workspace/d/small"):
        await do(ChildSandbox(), saved, target, archives=archives)


async def test_an_error_of_the_store_comes_through_and_its_reader_is_closed(
    saved: Saved, target: Path
) -> None:
    closed: list[str] = []

    async def failing() -> AsyncIterator[bytes]:
        try:
            yield saved.archive[:5]
            raise StoreUnavailable("scripted")
        finally:
            closed.append("failing")

    async def never_read() -> AsyncIterator[bytes]:
        yield b""

    first = ArchiveSource(number=1, inflated_bytes=1024, pieces=failing())
    second = ArchiveSource(number=2, inflated_bytes=1024, pieces=never_read())
    with pytest.raises(StoreUnavailable, match="scripted"):
        await do(ChildSandbox(), saved, target, archives=[first, second])
    assert closed == ["failing"]
    with pytest.raises(StopAsyncIteration):
        await anext(second.pieces)


async def test_a_program_that_ends_early_ends_the_feeding(saved: Saved, target: Path) -> None:
    async def leave(command: Command, sink: OutputSink) -> Outcome:
        return Outcome(ended_by=EndedBy.SIGNAL, exit_code=139, signal=11)

    with pytest.raises(SandboxUnavailable, match="signal"):
        await do(ScriptedSandbox(leave), saved, target)


async def test_a_sandbox_that_is_gone_is_told(saved: Saved, target: Path) -> None:
    sandbox = ScriptedSandbox()
    await sandbox.aclose()
    with pytest.raises(SandboxUnavailable):
        await do(sandbox, saved, target)


async def test_a_cancelled_refill_leaves_no_process_descriptor_or_reader(
    saved: Saved, target: Path
) -> None:
    before = open_descriptors()
    reading = asyncio.Event()
    closed = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        try:
            yield saved.chain[0].archive[:100_000]
            reading.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    sources = saved.sources()
    await sources[0].pieces.aclose()  # type: ignore[attr-defined]
    sources[0] = replace(sources[0], pieces=stalled())
    sandbox = ChildSandbox()
    task = asyncio.ensure_future(do(sandbox, saved, target, archives=sources))
    async with asyncio.timeout(5):
        await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sandbox.runs == 1
    assert closed.is_set()
    assert open_descriptors() == before


async def test_a_reader_that_stands_still_holds_the_feeding_back_not_the_loop(
    saved: Saved, target: Path
) -> None:
    """Nothing is read for a while: only what fits into the pipe is taken from the store."""
    taken = 0
    go = asyncio.Event()

    async def counted() -> AsyncIterator[bytes]:
        nonlocal taken
        async for piece in in_pieces(saved.chain[0].archive, 65536):
            taken += len(piece)
            yield piece

    class Slow(ChildSandbox):
        async def run(self, command: Command, sink: OutputSink) -> Outcome:
            await go.wait()
            return await super().run(command, sink)

    sources = saved.sources()
    await sources[0].pieces.aclose()  # type: ignore[attr-defined]
    sources[0] = replace(sources[0], pieces=counted())
    task = asyncio.ensure_future(do(Slow(), saved, target, archives=sources))
    last = -1
    async with asyncio.timeout(5):
        while taken != last or not taken:
            last = taken
            await asyncio.sleep(0.05)
    assert 0 < taken <= 2.5 * MIB
    go.set()
    await task
    check_volume(target, saved.manifest.entries)


@pytest.mark.parametrize(
    ("outcome", "error", "limit"),
    [
        (Outcome(ended_by=EndedBy.EXIT, exit_code=3), Corrupt, ""),
        (Outcome(ended_by=EndedBy.DISK, exit_code=3), Corrupt, ""),
        (Outcome(ended_by=EndedBy.EXIT, exit_code=4), LimitExceeded, "disk"),
        (Outcome(ended_by=EndedBy.DISK, exit_code=4), LimitExceeded, "disk"),
        (Outcome(ended_by=EndedBy.MEMORY, exit_code=137, signal=9), LimitExceeded, "memory"),
        (Outcome(ended_by=EndedBy.TIMEOUT, exit_code=124, signal=9), LimitExceeded, "timeout"),
        (Outcome(ended_by=EndedBy.EXIT, exit_code=5), SandboxUnavailable, ""),
        (Outcome(ended_by=EndedBy.EXIT, exit_code=127), SandboxUnavailable, ""),
        (
            Outcome(ended_by=EndedBy.WORKER_LOST, exit_code=137, sandbox_lost=True),
            SandboxUnavailable,
            "",
        ),
        (Outcome(ended_by=EndedBy.EXIT, exit_code=0), SandboxUnavailable, ""),
    ],
)
async def test_each_end_has_its_error(
    saved: Saved, target: Path, outcome: Outcome, error: type[WorkerError], limit: str
) -> None:
    async def end(command: Command, sink: OutputSink) -> Outcome:
        await sink.write(Stream.STDERR, b'{"error": "the words", "where": "workspace/x"}\n')
        await sink.write(Stream.STDOUT, b"[" * 50_000)
        return outcome

    with pytest.raises(error) as caught:
        await do(ScriptedSandbox(end), saved, target)
    assert type(caught.value) is error
    assert caught.value.metadata.get("ended_by", "") == limit
    if error is Corrupt:
        assert "the words" in caught.value.message


async def test_a_refill_that_takes_too_long_is_a_limit(saved: Saved, target: Path) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b""
        await asyncio.Event().wait()

    sources = [ArchiveSource(number=2, inflated_bytes=10240, pieces=stalled())]
    limits = RunLimits(timeout_s=0.3, output_bytes=MIB)
    with pytest.raises(LimitExceeded, match="timeout"):
        await do(ChildSandbox(), saved, target, archives=sources, limits=limits)


@given(
    st.lists(st.binary(max_size=2000), min_size=1, max_size=5),
    st.lists(st.integers(1, 500), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_members_cut_anywhere_inflate_to_what_went_in(
    members: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(gzip.compress(one) for one in members)
    inflating = Inflating(1, sum(map(len, members)))
    out: list[bytes] = []
    at = turn = 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        out += inflating.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    inflating.finish()
    assert b"".join(out) == b"".join(members)


@given(st.binary(max_size=300), st.integers(-5, 5))
@settings(max_examples=60, deadline=None)
def test_never_more_than_declared_comes_out(data: bytes, more: int) -> None:
    expected = max(0, len(data) + more)
    inflating = Inflating(1, expected)
    out = bytearray()
    try:
        for part in inflating.feed(gzip.compress(data)):
            out += part
        inflating.finish()
    except Corrupt:
        assert expected != len(data)
    else:
        assert expected == len(data)
    assert len(out) <= expected
