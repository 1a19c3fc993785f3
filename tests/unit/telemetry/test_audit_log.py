from __future__ import annotations

import asyncio
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import structlog

from codegen_mcp.core.errors import Conflict, Corrupt, NotFound, Unavailable
from codegen_mcp.telemetry.audit import AuditLog
from codegen_mcp.telemetry.audit_chain import GENESIS, Head, open_line, seal
from codegen_mcp.telemetry.audit_config import AuditConfig
from codegen_mcp.telemetry.audit_files import list_files
from codegen_mcp.telemetry.audit_metrics import AuditMetrics
from codegen_mcp.telemetry.audit_verify import heads_in, verify


async def written(directory: Path, count: int, **fields: Any) -> Head:
    """Keep a log of so many calls; returns the head it ended with."""
    async with AuditLog(AuditConfig(directory=directory, **fields)) as log:
        for number in range(count):
            await log.record({"kind": "call", "call": f"c{number}", "who": "alice"})
            await log.record({"kind": "end", "call": f"c{number}", "status": "OK"}, keep=True)
    return log.published


def only_file(directory: Path) -> Path:
    (file,) = list_files(directory)
    return file.path


async def test_a_log_that_nobody_touched_is_sound(tmp_path: Path) -> None:
    head = await written(tmp_path, 5)
    found = verify(tmp_path, [head])
    assert found.sound
    assert (found.calls, found.open_calls, found.heads_checked) == (5, {}, 1)
    assert found.head == head
    records = [json.loads(line) for line in only_file(tmp_path).read_text().splitlines()]
    assert [r["kind"] for r in records[:3]] == ["file", "start", "call"]
    assert [r["seq"] for r in records] == list(range(1, len(records) + 1))
    assert only_file(tmp_path).stat().st_mode & 0o077 == 0


async def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    first = await written(tmp_path, 3)
    second = await written(tmp_path, 3)
    found = verify(tmp_path, [first, second])
    assert found.sound
    assert found.heads_checked == 2
    assert second.sequence > first.sequence


@pytest.mark.parametrize("line", range(1, 9))
async def test_a_record_that_was_changed_is_found(tmp_path: Path, line: int) -> None:
    await written(tmp_path, 3)
    path = only_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b'"at":"2', b'"at":"1', 1)
    path.write_bytes(b"".join(lines))
    found = verify(tmp_path)
    assert not found.sound
    assert f"line {line}:" in found.problems[0]


@pytest.mark.parametrize("line", range(1, 8))
async def test_a_record_that_was_taken_out_is_found(tmp_path: Path, line: int) -> None:
    await written(tmp_path, 3)
    path = only_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[line - 1]
    path.write_bytes(b"".join(lines))
    assert not verify(tmp_path).sound


async def test_two_records_that_changed_places_are_found(tmp_path: Path) -> None:
    await written(tmp_path, 3)
    path = only_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4], lines[5] = lines[5], lines[4]
    path.write_bytes(b"".join(lines))
    assert not verify(tmp_path).sound


async def test_an_end_that_was_cut_off_is_found_by_a_published_head(tmp_path: Path) -> None:
    head = await written(tmp_path, 3)
    path = only_file(tmp_path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    assert verify(tmp_path).sound  # in itself
    found = verify(tmp_path, [head])
    assert "was cut off" in found.problems[0]


async def test_a_log_that_was_made_anew_is_found_by_a_published_head(tmp_path: Path) -> None:
    head = await written(tmp_path, 3)
    shutil.rmtree(tmp_path)
    await written(tmp_path, 9)
    assert verify(tmp_path).sound  # in itself
    found = verify(tmp_path, [head])
    assert "was made anew" in found.problems[0]


async def test_a_log_is_not_gone_on_with_after_damage(tmp_path: Path) -> None:
    await written(tmp_path, 3)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"alice", b"bobby", 1))
    with pytest.raises(Corrupt, match="line 3") as error:
        await written(tmp_path, 1)
    assert error.value.reason == "AUDIT_DAMAGED"


@pytest.mark.parametrize("cut", [1, 2, 20, 100, 150])
async def test_half_a_line_of_a_crash_is_accounted_for(tmp_path: Path, cut: int) -> None:
    await written(tmp_path, 3)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert verify(tmp_path).sound
    head = await written(tmp_path, 1)
    found = verify(tmp_path, [head])
    assert found.sound
    assert found.torn == 1


async def test_a_crash_while_half_a_line_is_accounted_for_is_too(tmp_path: Path) -> None:
    await written(tmp_path, 3)
    path = only_file(tmp_path)
    whole = path.read_bytes()[:-30]
    path.write_bytes(whole)
    await written(tmp_path, 0)
    recovered = path.read_bytes()[len(whole) :]
    told = recovered.index(b'"hash"') + 40  # in the middle of the record of kind torn
    for cut in (1, 2, 10, told):
        path.write_bytes(whole + recovered[:cut])
        head = await written(tmp_path, 1)
        found = verify(tmp_path, [head])
        assert found.sound, (cut, found.problems)
        assert found.torn == 1


async def test_a_torn_line_hides_nothing(tmp_path: Path) -> None:
    """Records cannot be turned into what a crash seems to have left."""
    await written(tmp_path, 3)
    path = only_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4][:40] + b"\n"
    path.write_bytes(b"".join(lines))
    assert not verify(tmp_path).sound
    with pytest.raises(Corrupt):
        await written(tmp_path, 1)


async def test_full_files_are_followed_by_the_next_and_compressed(tmp_path: Path) -> None:
    head = await written(tmp_path, 200, file_bytes=4096)
    files = list_files(tmp_path)
    assert len(files) > 5
    found = verify(tmp_path, [head])
    assert found.sound
    assert found.calls == 200
    again = await written(tmp_path, 5, file_bytes=4096)
    assert verify(tmp_path, [head, again]).sound
    # The last ones may be left to the next start.
    assert {one.first for one in files[:-1]} <= {
        one.first for one in list_files(tmp_path) if one.compressed
    }


async def test_a_file_in_the_middle_that_is_missing_or_damaged_is_found(tmp_path: Path) -> None:
    await written(tmp_path, 200, file_bytes=4096)
    third = list_files(tmp_path)[2].path
    packed = third.read_bytes()
    third.unlink()
    assert "goes on after" in verify(tmp_path).problems[0]
    for data in (packed[:-20], packed[:30] + b"xx" + packed[32:], b""):
        third.write_bytes(data)
        assert not verify(tmp_path).sound
    plain = gzip.decompress(packed)
    third.write_bytes(gzip.compress(b"".join(plain.splitlines(keepends=True)[:-1])))
    assert not verify(tmp_path).sound


async def test_old_files_may_be_taken_away(tmp_path: Path) -> None:
    head = await written(tmp_path, 200, file_bytes=4096, keep_files=2)
    files = list_files(tmp_path)
    assert len(files) <= 4
    found = verify(tmp_path, [head, Head(1, "a" * 64)])
    assert found.sound
    assert found.first == files[0].first > 1


async def test_a_file_that_a_crash_found_being_made_or_compressed_harms_nothing(
    tmp_path: Path,
) -> None:
    head = await written(tmp_path, 100, file_bytes=4096, compress=False)
    (tmp_path / f"audit-{head.sequence + 1:012d}.jsonl").write_bytes(b'{"seq":')
    assert verify(tmp_path, [head]).sound
    (tmp_path / "audit-000000000001.jsonl.gz.tmp").write_bytes(b"half")
    (tmp_path / "audit-000000000001.jsonl.gz").write_bytes(b"old")
    again = await written(tmp_path, 1, file_bytes=4096)
    assert verify(tmp_path, [head, again]).sound
    assert not list(tmp_path.glob("*.tmp"))


async def test_calls_at_once_are_all_recorded_in_one_chain(tmp_path: Path) -> None:
    async with AuditLog(AuditConfig(directory=tmp_path, file_bytes=32768)) as log:

        async def call(number: int) -> None:
            await log.record({"kind": "call", "call": f"c{number}"})
            await asyncio.sleep(0)
            await log.record({"kind": "end", "call": f"c{number}"}, keep=True)

        await asyncio.gather(*map(call, range(500)))
    found = verify(tmp_path, [log.published])
    assert found.sound
    assert (found.calls, found.open_calls) == (500, {})


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    async with AuditLog(AuditConfig(directory=tmp_path)):
        with pytest.raises(Conflict, match="another process"):
            await written(tmp_path, 1)


async def test_heads_are_logged_and_exported(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as events:
        async with AuditLog(AuditConfig(directory=tmp_path, head_s=0.01)) as log:
            before = log.published
            await log.record({"kind": "done"})
            async with asyncio.timeout(5):
                while log.published == before:
                    await asyncio.sleep(0.005)
            samples = {s.name: s for m in AuditMetrics(log).collect() for s in m.samples}
            assert samples["audit_head_info"].labels == {"head": str(log.published)}
            assert samples["audit_records"].value == log.published.sequence
    lines = [json.dumps(e) for e in events if e["event"] == "audit.head"]
    heads = heads_in(["noise", '{"event":"x"}', *(f"prefix {line}" for line in lines)])
    assert len(heads) >= 3
    found = verify(tmp_path, heads)
    assert found.sound
    assert found.heads_checked == len(heads)


async def test_it_is_checked_while_it_is_written(tmp_path: Path) -> None:
    async with AuditLog(AuditConfig(directory=tmp_path, file_bytes=4096)) as log:
        for number in range(60):
            await log.record({"kind": "done", "call": f"c{number}"})
            assert (await asyncio.to_thread(verify, tmp_path)).sound


async def test_what_cannot_be_written_is_not_done(tmp_path: Path) -> None:
    async with AuditLog(AuditConfig(directory=tmp_path)) as log:
        real = log._writer._write

        def full(data: bytes) -> None:
            raise OSError(28, "No space left on device")

        log._writer._write = full  # type: ignore[method-assign]
        with pytest.raises(Unavailable) as error:
            await log.record({"kind": "call", "call": "a"})
        assert error.value.reason == "AUDIT_UNAVAILABLE"
        assert error.value.retry_after_s
        assert log.failing
        await log.record({"kind": "end", "call": "b", "status": "OK"}, keep=True)
        log._writer._write = real  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            while log.failing:
                await asyncio.sleep(0.01)
    kinds = [json.loads(line) for line in only_file(tmp_path).read_text().splitlines()]
    assert [(r["kind"], r.get("call")) for r in kinds[2:]] == [("end", "b"), ("stop", None)]
    assert log.missed == 0


async def test_where_it_is_not_required_calls_go_on_and_the_gap_is_recorded(tmp_path: Path) -> None:
    async with AuditLog(AuditConfig(directory=tmp_path, required=False)) as log:
        real = log._writer._write

        def full(data: bytes) -> None:
            raise OSError(28, "No space left on device")

        log._writer._write = full  # type: ignore[method-assign]
        await log.record({"kind": "call", "call": "a"})
        await log.record({"kind": "end", "call": "a"}, keep=True)
        log._writer._write = real  # type: ignore[method-assign]
        await log.record({"kind": "call", "call": "b"})
    found = verify(tmp_path, [log.published])
    assert found.sound
    assert found.missed == log.missed == 2


@pytest.mark.parametrize("harm", ["cut", "lengthened", "deleted"])
async def test_a_log_that_is_changed_under_a_running_service_stops_it(
    tmp_path: Path, harm: str
) -> None:
    async with AuditLog(AuditConfig(directory=tmp_path)) as log:
        await log.record({"kind": "call", "call": "a"})
        path = only_file(tmp_path)
        if harm == "deleted":
            path.unlink()
        elif harm == "cut":
            path.write_bytes(path.read_bytes()[:-200])
        else:
            path.write_bytes(path.read_bytes() + b"x")
        for _ in range(2):
            with pytest.raises(Unavailable):
                await log.record({"kind": "call", "call": "b"})
        assert log.failing


async def test_what_waits_for_a_full_disk_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codegen_mcp.telemetry.audit.MOST_KEPT", 10)
    async with AuditLog(AuditConfig(directory=tmp_path)) as log:
        real = log._writer._write

        def full(data: bytes) -> None:
            raise OSError(28, "No space left on device")

        log._writer._write = full  # type: ignore[method-assign]
        for number in range(30):
            await log.record({"kind": "end", "call": f"c{number}"}, keep=True)
        log._writer._write = real  # type: ignore[method-assign]
    found = verify(tmp_path, [log.published])
    assert found.sound
    assert found.missed == log.missed == 20


async def test_whoever_waits_when_it_ends_is_told(tmp_path: Path) -> None:
    async with AuditLog(AuditConfig(directory=tmp_path)) as log:
        pass
    with pytest.raises(Unavailable):
        await log.record({"kind": "call"})


async def test_the_chain_is_what_its_description_says() -> None:
    line, head = seal(Head(), {"kind": "x", "text": 'ä"\ud800\n'})
    assert b"\n" not in line
    assert line.endswith(f',"hash":"{head.digest}"}}'.encode())
    assert open_line(Head(), line)[1] == head
    assert Head() == Head(0, GENESIS)
    assert Head.parse(str(head)) == head
    for bad in ("", "1", "1:", "x:" + "a" * 64, "1:" + "A" * 64, "-1:" + "a" * 64):
        with pytest.raises(ValueError, match="must be"):
            Head.parse(bad)
    for changed in (line[:-2] + b" }", line.replace(b'"kind"', b'"k"'), b"[]", b"{}", b"7"):
        with pytest.raises(ValueError, match="it "):
            open_line(Head(), changed)


def test_a_directory_without_a_log_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        verify(tmp_path)
