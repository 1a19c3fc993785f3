"""Output journals: however bytes come in and readers come and go, every byte is where it was."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_mcp.core.clock import SystemClock
from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.task import Stream
from codegen_mcp.engine.base import OutputEvent
from codegen_mcp.engine.head_tail import HeadTail
from codegen_mcp.engine.output import OutputJournal
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.output_reader import OutputReader
from codegen_mcp.engine.output_spool import SpoolDirectory

STREAMS = st.sampled_from(list(Stream))
CHUNKS = st.lists(st.tuples(STREAMS, st.binary(min_size=1, max_size=40)), max_size=40)
BIG = 1 << 40


def small(**changes: int | float) -> OutputConfig:
    sizes: dict[str, int | float] = {
        "capture_bytes": 20,
        "event_bytes": 16,
        "memory_bytes": 1200,
        "window_bytes": BIG,
        "event_delay_s": 1e-9,
        "segment_bytes": 150,
        "spool_bytes": BIG,
    }
    return OutputConfig(**{**sizes, **changes})  # type: ignore[arg-type]  # numbers of both kinds


def journal_in(directory: str, config: OutputConfig, limit: int = BIG) -> OutputJournal:
    spools = SpoolDirectory(Path(directory), config)
    return OutputJournal(config, SystemClock(), spools.new, limit)


class Follower:
    """Reads with a reader and checks that what comes is contiguous."""

    def __init__(self, reader: OutputReader, stdout: int = 0, stderr: int = 0) -> None:
        self.reader = reader
        self.next = {Stream.STDOUT: stdout, Stream.STDERR: stderr}
        self.read = {Stream.STDOUT: b"", Stream.STDERR: b""}

    def got(self, event: OutputEvent, config: OutputConfig) -> None:
        assert event.offset == self.next[event.stream]
        assert 0 < len(event.data) <= config.event_bytes
        self.next[event.stream] += len(event.data)
        self.read[event.stream] += event.data

    async def step(self, config: OutputConfig) -> bool:
        event = self.reader.take()
        if event is not None:
            self.got(event, config)
            return True
        if self.reader.behind:
            await self.reader.fetch()
            return True
        return False


@settings(max_examples=150, deadline=None)
@given(
    chunks=CHUNKS,
    attach_at=st.lists(st.integers(0, 40), max_size=3),
    cuts=st.tuples(st.integers(0, 1500), st.integers(0, 1500)),
    steps=st.integers(0, 5),
)
def test_what_a_reader_gets_joins_to_the_bytes_from_its_offset_on(
    chunks: list[tuple[Stream, bytes]],
    attach_at: list[int],
    cuts: tuple[int, int],
    steps: int,
) -> None:
    async def scenario(directory: str) -> None:
        config = small()
        journal = journal_in(directory, config)
        written = {Stream.STDOUT: b"", Stream.STDERR: b""}
        followers = []
        for number in range(len(chunks) + 1):
            for _ in range(attach_at.count(number)):
                stdout = min(cuts[0], len(written[Stream.STDOUT]))
                stderr = min(cuts[1], len(written[Stream.STDERR]))
                reader = journal.attach(stdout, stderr)
                followers.append((Follower(reader, stdout, stderr), stdout, stderr))
            if number < len(chunks):
                stream, data = chunks[number]
                await journal.write(stream, data)
                written[stream] += data
            for follower, _, _ in followers:
                for _ in range(steps):
                    await follower.step(config)
        journal.end()
        await journal.settle()
        followers.append((Follower(journal.attach(0, 0)), 0, 0))
        for follower, stdout, stderr in followers:
            while await follower.step(config):
                pass
            assert follower.read[Stream.STDOUT] == written[Stream.STDOUT][stdout:]
            assert follower.read[Stream.STDERR] == written[Stream.STDERR][stderr:]
            journal.detach(follower.reader)
        assert journal.memory_bytes == 0

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(directory))


@settings(max_examples=60, deadline=None)
@given(chunks=CHUNKS.filter(lambda chunks: len(chunks) > 5), pace=st.integers(1, 4))
def test_a_slow_reader_holds_the_writer_back_and_loses_nothing(
    chunks: list[tuple[Stream, bytes]], pace: int
) -> None:
    async def scenario(directory: str) -> None:
        config = small(window_bytes=64)
        journal = journal_in(directory, config)
        follower = Follower(journal.attach(0, 0))
        widest = 0

        def lag() -> int:
            logged = journal.logged(Stream.STDOUT) + journal.logged(Stream.STDERR)
            return logged - follower.reader.consumed

        async def write() -> None:
            for stream, data in chunks:
                await journal.write(stream, data)
            journal.end()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            writer = group.create_task(write())
            while not writer.done() or lag():
                widest = max(widest, lag())
                for _ in range(pace):
                    if not await follower.step(config):
                        break
                else:
                    await asyncio.sleep(0)
                    continue
                if not writer.done():
                    await follower.reader.wait()
        assert widest <= config.window_bytes + 40
        for stream in Stream:
            assert follower.read[stream] == b"".join(d for s, d in chunks if s is stream)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(directory))


@settings(max_examples=60, deadline=None)
@given(chunks=CHUNKS, budget=st.integers(1, 600))
def test_output_that_is_held_is_exact_and_what_is_not_is_refused(
    chunks: list[tuple[Stream, bytes]], budget: int
) -> None:
    async def scenario(directory: str) -> None:
        config = small(spool_bytes=budget, memory_bytes=800)
        journal = journal_in(directory, config)
        written = {Stream.STDOUT: b"", Stream.STDERR: b""}
        for stream, data in chunks:
            await journal.write(stream, data)
            written[stream] += data
        journal.end()
        await journal.settle()
        follower = Follower(journal.attach(None, None))
        follower.next = {
            Stream.STDOUT: follower.reader._next[Stream.STDOUT],
            Stream.STDERR: follower.reader._next[Stream.STDERR],
        }
        held = dict(follower.next)
        while await follower.step(config):
            pass
        for stream in Stream:
            assert follower.read[stream] == written[stream][held[stream] :]
        if held[Stream.STDOUT]:
            with pytest.raises(WrongState) as refused:
                journal.attach(0, None)
            assert refused.value.reason == "OUTPUT_EXPIRED"
            assert refused.value.metadata["first_offset"] == str(held[Stream.STDOUT])

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(directory))


@settings(max_examples=60, deadline=None)
@given(chunks=CHUNKS, limit=st.integers(0, 300))
def test_beyond_the_limit_bytes_are_counted_and_not_kept(
    chunks: list[tuple[Stream, bytes]], limit: int
) -> None:
    async def scenario(directory: str) -> None:
        config = small(capture_bytes=10_000)
        journal = journal_in(directory, config, limit)
        kept = {Stream.STDOUT: b"", Stream.STDERR: b""}
        left = limit
        for stream, data in chunks:
            await journal.write(stream, data)
            kept[stream] += data[:left]
            left -= min(left, len(data))
        captured = journal.captured()
        total = {s: sum(len(d) for stream, d in chunks if stream is s) for s in Stream}
        assert captured.stdout == kept[Stream.STDOUT]
        assert captured.stderr == kept[Stream.STDERR]
        assert captured.stdout_bytes == total[Stream.STDOUT]
        assert captured.stderr_bytes == total[Stream.STDERR]
        assert captured.stdout_omitted == captured.stdout_bytes - len(captured.stdout)
        assert captured.stderr_omitted == captured.stderr_bytes - len(captured.stderr)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(directory))


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(max_size=400),
    sizes=st.lists(st.integers(1, 30), min_size=1),
    capture=st.integers(2, 200),
    omitted=st.integers(0, 5),
)
def test_head_and_tail_are_whole_characters_with_exact_counts(
    text: str, sizes: list[int], capture: int, omitted: int
) -> None:
    data = text.encode()
    kept = HeadTail(capture, 1 << 30)
    at = 0
    for size in sizes * (len(data) // sum(sizes) + 1):
        kept.add(data[at : at + size])
        at += size
    if omitted:
        kept.omit(omitted)
    captured = kept.capture()
    assert captured.total == len(data) + omitted
    assert len(captured.data) + captured.omitted == captured.total
    assert len(captured.data) <= capture
    captured.data.decode()  # never a torn character
    if len(data) <= capture // 2 * 2 and not omitted:
        assert captured.data == data


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=300).map(lambda data: data * 500),
    budget=st.integers(100, 200_000),
)
def test_the_kept_part_never_outgrows_its_text_budget(data: bytes, budget: int) -> None:
    kept = HeadTail(1 << 20, budget)
    kept.add(data)
    captured = kept.capture()
    text = json.dumps(captured.data.decode("utf-8", "replace"), ensure_ascii=False)
    # A cut between two blocks may add a replacement character on each side.
    assert len(text.encode()) - 2 <= budget + 12
    assert len(captured.data) + captured.omitted == len(data)
