"""session.json: what was written is read, by this version and by every later one."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.core.errors import Corrupt, WrongState
from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.engine import session_store
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.sandbox.base import HostIdentity

GOLDEN = Path(__file__).with_name("golden")
RECORD = SessionRecord(
    session_id="ses_0123456789abcdef0123456789abcdef",
    workspace_id="w",
    user_id="u",
    interpreter="python3.11",
    limits=ResourceLimits(
        memory_bytes=128 * MIB,
        cpu_millicores=500,
        disk_bytes=256 * MIB,
        pids=64,
        open_files=512,
        file_size_bytes=256 * MIB,
        tmp_bytes=64 * MIB,
        timeout_s=30.0,
        max_timeout_s=600.0,
        output_bytes=1 * MIB,
        concurrent_tasks=8,
    ),
    env={"GREETING": "grüße"},
    metadata={"team": "blue"},
    idle_timeout_s=900.0,
    created_at_ms=1_700_000_000_000,
    last_activity_ms=1_700_000_005_000,
    incarnation=3,
    identity=HostIdentity(uid=200017, gid=200017),
    recent_tasks=("t2", "t1"),
)


def test_the_golden_file_of_format_1_is_read() -> None:
    path = GOLDEN / "session-1.json"
    assert session_store.decode(path, path.read_bytes()) == RECORD


def test_this_version_writes_the_golden_file_of_its_format() -> None:
    path = GOLDEN / f"session-{session_store.FORMAT}.json"
    assert session_store.encode(RECORD) == path.read_bytes()


@pytest.mark.parametrize("prepared", [True, False])
def test_the_first_record_is_whole_whether_its_file_was_made_ahead(
    tmp_path: Path, prepared: bool
) -> None:
    if prepared:
        session_store.prepare(tmp_path)
        with pytest.raises(Corrupt):  # nobody's session as long as nothing is in it
            session_store.load(tmp_path)
    session_store.save_new(tmp_path, RECORD)
    assert session_store.load(tmp_path) == RECORD
    assert stat.S_IMODE((tmp_path / session_store.FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("durable", [True, False])
def test_a_record_survives_the_file(tmp_path: Path, durable: bool) -> None:
    session_store.save(tmp_path, RECORD, durable=durable)
    assert session_store.load(tmp_path) == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["session.json"]
    assert stat.S_IMODE((tmp_path / "session.json").stat().st_mode) == 0o600


def test_the_epoch_is_kept_and_is_1_where_an_older_version_wrote_none() -> None:
    later = dataclasses.replace(RECORD, epoch=7)
    assert session_store.decode(Path("x"), session_store.encode(later)) == later
    path = GOLDEN / "session-1.json"
    assert session_store.decode(path, path.read_bytes()).epoch == 1


def test_a_newer_format_is_refused_by_its_file_name(tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text('{"format": 2}')
    with pytest.raises(WrongState, match=r"session\.json' has format 2") as caught:
        session_store.load(tmp_path)
    assert caught.value.reason == "FORMAT_TOO_NEW"


def test_an_unknown_limit_is_ignored_and_a_missing_one_has_its_default() -> None:
    content = json.loads(session_store.encode(RECORD))
    content["limits"]["future"] = 1
    del content["limits"]["pids"]
    read = session_store.decode(Path("x"), json.dumps(content).encode())
    assert read.limits.pids == ResourceLimits().pids


def damaged(**changes: object) -> bytes:
    return json.dumps(json.loads(session_store.encode(RECORD)) | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": "1"}',
        b'{"format": 1}',
        b"\xff\xfe",
        damaged(limits={"pids": "many"}),
        damaged(limits={"pids": -1}),
        damaged(env={"A": 1}),
        damaged(identity={"uid": 1}),
        damaged(incarnation=None),
        damaged(format=True),
    ],
)
def test_a_damaged_file_is_named(data: bytes) -> None:
    with pytest.raises(Corrupt, match="session"):
        session_store.decode(Path("session.json"), data)


@given(st.binary(max_size=200))
def test_whatever_lies_there_is_read_or_named_damaged(data: bytes) -> None:
    with pytest.raises((Corrupt, WrongState)):
        session_store.decode(Path("x"), data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="cannot be read"):
        session_store.load(tmp_path)
