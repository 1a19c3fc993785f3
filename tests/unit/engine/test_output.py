"""The output journal where time, disks and readers misbehave."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from codegen_mcp.core.clock import SystemClock
from codegen_mcp.core.errors import InvalidRequest, WrongState
from codegen_mcp.core.limits import KIB, MIB
from codegen_mcp.core.task import Stream
from codegen_mcp.engine.output import OutputJournal
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.output_reader import OutputReader
from codegen_mcp.engine.output_spool import SpoolDirectory


def make(
    root: Path, limit: int = 1 << 40, **changes: float
) -> tuple[OutputJournal, SpoolDirectory]:
    config = OutputConfig(**changes)  # type: ignore[arg-type]  # numbers of both kinds
    spools = SpoolDirectory(root, config)
    return OutputJournal(config, SystemClock(), spools.new, limit), spools


async def drained(reader: OutputReader) -> dict[Stream, bytes]:
    read = {Stream.STDOUT: b"", Stream.STDERR: b""}
    while True:
        event = reader.take()
        if event is not None:
            read[event.stream] += event.data
        elif reader.behind:
            await reader.fetch()
        else:
            return read


async def test_the_first_output_is_given_at_once_and_what_follows_is_collected(
    tmp_path: Path,
) -> None:
    journal, _ = make(tmp_path, event_delay_s=30.0)
    reader = journal.attach(0, 0)
    await journal.write(Stream.STDOUT, b"a")
    first = reader.take()
    assert first is not None
    assert first.data == b"a"
    await journal.write(Stream.STDOUT, b"b")
    await journal.write(Stream.STDOUT, b"c")
    assert reader.take() is None
    journal.end()
    rest = reader.take()
    assert rest is not None
    assert (rest.data, rest.offset) == (b"bc", 1)


async def test_collected_output_is_due_after_its_delay_without_further_output(
    tmp_path: Path,
) -> None:
    journal, _ = make(tmp_path, event_delay_s=0.01)
    reader = journal.attach(0, 0)
    await journal.write(Stream.STDOUT, b"a")
    assert reader.take() is not None
    await journal.write(Stream.STDOUT, b"b")
    async with asyncio.timeout(5):
        while (event := reader.take()) is None:
            await reader.wait()
    assert event.data == b"b"


async def test_a_full_piece_waits_for_nothing(tmp_path: Path) -> None:
    journal, _ = make(tmp_path, event_delay_s=30.0)
    reader = journal.attach(0, 0)
    await journal.write(Stream.STDOUT, b"a")
    assert reader.take() is not None
    waiting = asyncio.ensure_future(reader.wait())
    await asyncio.sleep(0)
    await journal.write(Stream.STDOUT, b"x" * 64 * KIB)
    async with asyncio.timeout(5):
        await waiting
    piece = reader.take()
    assert piece is not None
    assert len(piece.data) == 64 * KIB


async def test_streams_come_in_the_order_of_arrival(tmp_path: Path) -> None:
    journal, _ = make(tmp_path)
    for number in range(6):
        await journal.write(Stream.STDERR if number % 2 else Stream.STDOUT, b"%d" % number)
    journal.end()
    reader = journal.attach(0, 0)
    data = b""
    while (event := reader.take()) is not None:
        data += event.data
    assert data == b"012345"


async def test_memory_stays_bounded_and_long_output_is_replayed_from_disk(tmp_path: Path) -> None:
    journal, spools = make(tmp_path, capture_bytes=2)
    block = bytes(range(256)) * 256
    for _ in range(160):  # 10 MiB
        await journal.write(Stream.STDOUT, block)
        assert journal.memory_bytes <= 1 * MIB + 70 * KIB
    journal.end()
    assert spools.used_bytes > 9 * MIB
    for offset in (0, 5 * MIB + 1, 10 * MIB):
        reader = journal.attach(offset, 0)
        assert (await drained(reader))[Stream.STDOUT] == (block * 160)[offset:]
        journal.detach(reader)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "output").iterdir()}
    assert modes == {0o600}
    journal.drop()
    assert spools.used_bytes == 0
    assert not list((tmp_path / "output").iterdir())


async def test_the_writer_waits_at_the_window_and_goes_on_when_the_reader_does(
    tmp_path: Path,
) -> None:
    journal, _ = make(tmp_path, window_bytes=128 * KIB)
    reader = journal.attach(0, 0)
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(8):
            await journal.write(Stream.STDOUT, b"x" * 64 * KIB)
            written += 1

    writer = asyncio.ensure_future(write())
    for _ in range(20):
        await asyncio.sleep(0)
    assert written == 2
    assert reader.take() is not None
    for _ in range(20):
        await asyncio.sleep(0)
    assert written == 3  # the fourth waits
    journal.detach(reader)
    async with asyncio.timeout(5):
        await writer


async def test_release_frees_a_writer_that_a_stalled_reader_holds(tmp_path: Path) -> None:
    journal, _ = make(tmp_path, window_bytes=1, patience_s=30.0)
    reader = journal.attach(0, 0)
    await journal.write(Stream.STDOUT, b"abc")
    writer = asyncio.ensure_future(journal.write(Stream.STDOUT, b"def"))
    await asyncio.sleep(0)
    assert not writer.done()
    journal.release()
    async with asyncio.timeout(5):
        await writer
    await journal.write(Stream.STDOUT, b"ghi")
    journal.end()
    assert (await drained(reader))[Stream.STDOUT] == b"abcdefghi"


async def test_a_reader_that_takes_nothing_slows_the_writer_but_cannot_stop_it(
    tmp_path: Path,
) -> None:
    journal, _ = make(tmp_path, window_bytes=1, patience_s=0.01)
    reader = journal.attach(0, 0)
    async with asyncio.timeout(5):
        for _ in range(3):
            await journal.write(Stream.STDOUT, b"abc")
    journal.end()
    assert (await drained(reader))[Stream.STDOUT] == b"abc" * 3


async def test_a_write_that_is_cancelled_took_nothing_and_loses_nothing(tmp_path: Path) -> None:
    journal, _ = make(tmp_path, memory_bytes=256 * KIB, capture_bytes=2)
    block = b"y" * 64 * KIB
    cancelled = taken = 0
    while cancelled < 3:
        writer = asyncio.ensure_future(journal.write(Stream.STDOUT, block))
        await asyncio.sleep(0)
        if writer.done():
            taken += 1
            continue
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        cancelled += 1
    journal.end()
    assert (await drained(journal.attach(0, 0)))[Stream.STDOUT] == block * taken


async def test_a_full_host_disk_slows_readers_down_but_takes_nothing_from_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "output").write_text("a file where the directory should be")
    journal, _ = make(tmp_path, memory_bytes=256 * KIB, capture_bytes=2)
    reader = journal.attach(0, 0)
    block = b"z" * 64 * KIB
    read = b""

    async def write() -> None:
        for _ in range(64):
            await journal.write(Stream.STDOUT, block)
        journal.end()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        writer = group.create_task(write())
        while not (writer.done() and len(read) == 64 * len(block)):
            event = reader.take()
            if event is None:
                await asyncio.sleep(0)
                continue
            read += event.data
            assert journal.memory_bytes <= 256 * KIB + 70 * KIB
    assert read == block * 64
    with pytest.raises(WrongState, match="not held any more"):
        journal.attach(0, 0)


async def test_the_host_s_last_free_space_is_not_taken_by_output(tmp_path: Path) -> None:
    journal, spools = make(tmp_path, memory_bytes=256 * KIB, disk_reserve_bytes=1 << 60)
    for _ in range(16):
        await journal.write(Stream.STDOUT, b"z" * 64 * KIB)
    assert spools.used_bytes == 0
    assert journal.captured().stdout_bytes == 1 * MIB


async def test_without_a_reader_a_full_host_disk_only_costs_the_old_output(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file where the directory should be")
    journal, _ = make(tmp_path, memory_bytes=256 * KIB)
    for _ in range(64):
        await journal.write(Stream.STDOUT, b"z" * 64 * KIB)
    journal.end()
    captured = journal.captured()
    assert captured.stdout_bytes == 4 * MIB
    assert journal.memory_bytes < 256 * KIB + 70 * KIB


async def test_the_oldest_output_of_a_session_is_dropped_first(tmp_path: Path) -> None:
    config = OutputConfig(
        memory_bytes=256 * KIB, spool_bytes=1 * MIB, segment_bytes=64 * KIB, capture_bytes=2
    )
    spools = SpoolDirectory(tmp_path, config)
    journals = []
    for _ in range(3):
        journal = OutputJournal(config, SystemClock(), spools.new, 1 << 40)
        for _ in range(10):
            await journal.write(Stream.STDOUT, b"q" * 64 * KIB)
        journal.end()
        await journal.settle()
        journals.append(journal)
    assert spools.used_bytes <= 1 * MIB
    with pytest.raises(WrongState):
        journals[0].attach(0, 0)
    assert (await drained(journals[2].attach(0, 0)))[Stream.STDOUT] == b"q" * 640 * KIB
    spools.clear()
    assert not os.path.exists(tmp_path / "output")


@pytest.mark.parametrize("offset", [-1, 4])
async def test_offsets_that_were_never_printed_are_refused(tmp_path: Path, offset: int) -> None:
    journal, _ = make(tmp_path)
    await journal.write(Stream.STDERR, b"abc")
    with pytest.raises(InvalidRequest, match="stderr_offset"):
        journal.attach(0, offset)
    assert journal.readers == 0


async def test_default_capture_is_a_mebibyte_a_stream_half_from_each_end(tmp_path: Path) -> None:
    journal, _ = make(tmp_path)
    text = b"".join(b"%08d\n" % number for number in range(400_000))
    for start in range(0, len(text), 64 * KIB):
        await journal.write(Stream.STDOUT, text[start : start + 64 * KIB])
    journal.omit(Stream.STDOUT, 11)
    captured = journal.captured()
    assert captured.stdout == text[: 512 * KIB] + text[-512 * KIB :]
    assert captured.stdout_bytes == len(text) + 11
    assert captured.stdout_omitted == len(text) + 11 - 1 * MIB


async def test_bytes_that_swell_as_text_keep_the_result_below_three_mebibytes(
    tmp_path: Path,
) -> None:
    journal, _ = make(tmp_path)
    for _ in range(64):
        await journal.write(Stream.STDOUT, b"\xff" * 64 * KIB)
        await journal.write(Stream.STDERR, b"\0" * 64 * KIB)
    captured = journal.captured()
    assert len(captured.stdout.decode(errors="replace").encode()) <= 3 * MIB // 2
    assert len(captured.stderr) * len("\\u0000") <= 3 * MIB // 2
    assert captured.stdout_bytes == 4 * MIB == len(captured.stdout) + captured.stdout_omitted


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="window_bytes"):
        OutputConfig(window_bytes=0)
    with pytest.raises(InvalidRequest, match="memory_bytes"):
        OutputConfig(memory_bytes=1)
