"""The records of tasks go along with a checkpoint, those of tasks under way as well."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.core.clock import SystemClock
from codegen_mcp.core.errors import Corrupt, OutcomeUnknown
from codegen_mcp.core.task import EndedBy, TaskStatus
from codegen_mcp.engine.base import ResultEvent, TaskMetadata
from codegen_mcp.engine.checkpoints.journal import packed, unpack
from codegen_mcp.engine.task import TaskFacts
from codegen_mcp.engine.task_book import TaskBook
from codegen_mcp.engine.task_journal import FILE_NAME
from codegen_mcp.engine.task_ledger import TaskLedger
from codegen_mcp.engine.task_lines import FORMAT, end_line, header_line, start_line


def facts(number: int, *, sequence: int = 0) -> TaskFacts:
    return TaskFacts(
        task_id=f"t-{number}",
        session_id="ses_" + "0" * 32,
        tool="run.python",
        sequence=sequence,
        fingerprint="f",
        submitted_at_ms=1000 + number,
    )


def end(number: int, *, sequence: int = 0) -> bytes:
    result = ResultEvent(
        status=TaskStatus.SUCCESS,
        tool="run.python",
        value=None,
        metadata=TaskMetadata(end_time_ms=2000, ended_by=EndedBy.EXIT),
    )
    return end_line(facts(number, sequence=sequence), result, (0, 0))


def recovered(lines: bytes, directory: Path) -> TaskBook:
    (directory / FILE_NAME).write_bytes(lines)
    ledger = TaskLedger(SystemClock())
    ledger.recover("ses_" + "0" * 32, directory)
    return ledger.book("ses_" + "0" * 32, directory)


def test_nothing_is_kept_where_there_is_nothing() -> None:
    for journal in (b"", header_line(0), b"torn"):
        assert packed(journal) == (b"", 0)


def test_finished_tasks_are_finished_afterwards_and_those_under_way_are_lost(
    tmp_path: Path,
) -> None:
    journal = header_line(0)
    journal += start_line(facts(1, sequence=1)) + end(1, sequence=1)
    journal += start_line(facts(2, sequence=2))
    data, last = packed(journal + b'{"torn')
    assert last == 2
    book = recovered(unpack(data), tmp_path)
    assert [(one.task_id, one.ended_by) for one in book] == [
        ("t-1", EndedBy.EXIT),
        ("t-2", EndedBy.WORKER_LOST),
    ]
    book.close()


def test_used_numbers_stay_used_without_records(tmp_path: Path) -> None:
    data, last = packed(header_line(9))
    assert last == 9
    book = recovered(unpack(data), tmp_path)
    with pytest.raises(OutcomeUnknown):
        book.sequences.check_new(9, "t-9")
    book.sequences.check_new(10, "t-10")
    book.close()


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=5))
def test_damaged_lines_cost_no_others(damaged: list[bytes]) -> None:
    good = start_line(facts(1)) + end(1)
    journal = header_line(3) + b"".join(line + b"\n" for line in damaged) + good
    lines = unpack(packed(journal)[0])
    assert lines.endswith(good)
    assert json.loads(lines.splitlines()[0])["last_sequence"] >= 3


def test_the_same_records_are_the_same_bytes() -> None:
    journal = header_line(0) + start_line(facts(1)) + end(1)
    assert packed(journal) == packed(journal)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no gzip",
        gzip.compress(header_line(1), mtime=0)[:-3],
        gzip.compress(header_line(1), mtime=0) + b"more",
        gzip.compress(b"no header\n", mtime=0),
        gzip.compress(b"{}\n", mtime=0),
        gzip.compress(b'{"format":%d}\n' % (FORMAT + 1), mtime=0),
    ],
)
def test_what_is_no_journal_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt) as refused:
        unpack(data)
    assert refused.value.reason == "CHECKPOINT_DAMAGED"
