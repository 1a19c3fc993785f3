"""What tells an unchanged file from one that must be read again."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.engine.checkpoints.live_state import TICK_NS, LiveState, State, changed
from codegen_mcp.engine.checkpoints.scan import Seen, scan

TIMES = st.integers(-(2**63), 2**63 - 1)
STATES = st.builds(
    State,
    ino=st.integers(0, 2**64 - 1),
    ctime_ns=TIMES,
    mtime_ns=TIMES,
    size=st.integers(0, 2**63),
    mode=st.integers(0, 0o7777),
)
PATHS = st.binary(min_size=1, max_size=40).filter(lambda path: 0 not in path)


def look(directory: Path) -> dict[bytes, Seen]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        return {seen.path: seen for seen in scan(fd, b"workspace")}
    finally:
        os.close(fd)


def entry_of(seen: Seen) -> Entry:
    assert seen.kind is not None
    size = seen.size if seen.kind is EntryKind.FILE else 0
    return Entry(seen.path, seen.kind, seen.mode, seen.mtime_ns, size=size, target=seen.target)


def take(seen: Seen) -> tuple[State, Entry, int]:
    """State, entry and time of a checkpoint now, once the clock is well past the last change."""
    taken_ns = time.time_ns()
    while taken_ns <= seen.ctime_ns + TICK_NS:
        time.sleep(0.001)
        taken_ns = time.time_ns()
    return State.of(seen), entry_of(seen), taken_ns


@given(states=st.dictionaries(PATHS, STATES), taken_ns=TIMES, checkpoint=st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_saved_is_what_is_loaded(
    tmp_path: Path, states: dict[bytes, State], taken_ns: int, checkpoint: str
) -> None:
    path = tmp_path / "live"
    saved = LiveState(checkpoint, taken_ns, states)
    saved.save(path)
    assert LiveState.load(path) == saved
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_time_beyond_the_format_is_left_out_and_so_in_doubt(tmp_path: Path) -> None:
    states = {b"a": State(1, 2, 2**63, 4, 5), b"b": State(1, 2, 3, 4, 5)}
    LiveState("c", 1, states).save(tmp_path / "live")
    loaded = LiveState.load(tmp_path / "live")
    assert loaded is not None
    assert set(loaded.states) == {b"b"}


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_damage_is_as_if_there_was_nothing(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "live"
    LiveState("c", 1, {b"workspace/a": State(1, 2, 3, 4, 5)}).save(path)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
    else:
        flipped = whole[at] ^ data.draw(st.integers(1, 255))
        path.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
    assert LiveState.load(path) is None


def test_what_is_missing_is_none(tmp_path: Path) -> None:
    assert LiveState.load(tmp_path / "nothing") is None
    assert LiveState.load(tmp_path) is None


def test_what_was_not_touched_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("x")
    os.mkfifo(tmp_path / "pipe")
    os.link(tmp_path / "file", tmp_path / "second")
    for seen in look(tmp_path).values():
        state, entry, taken_ns = take(seen)
        assert changed(look(tmp_path)[seen.path], state, entry, taken_ns) == "same"


def test_a_file_of_the_last_tick_is_in_doubt(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    seen = look(tmp_path)[b"workspace/file"]
    state, entry = State.of(seen), entry_of(seen)
    assert changed(seen, state, entry, seen.ctime_ns + TICK_NS) == "doubt"
    assert changed(seen, state, entry, seen.ctime_ns) == "doubt"
    assert changed(seen, state, entry, seen.ctime_ns + TICK_NS + 1) == "same"


def test_a_file_without_a_state_is_in_doubt(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    seen = look(tmp_path)[b"workspace/file"]
    assert changed(seen, None, entry_of(seen), time.time_ns() + 10**10) == "doubt"


def test_a_name_that_the_checkpoint_had_not_or_as_another_kind_is_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    seen = look(tmp_path)[b"workspace/file"]
    state, entry, taken_ns = take(seen)
    assert changed(seen, state, None, taken_ns) == "content"
    for kind in EntryKind:
        if kind is not EntryKind.FILE:
            assert changed(seen, state, replace(entry, kind=kind), taken_ns) == "content"


def test_another_target_is_content_and_another_mode_of_a_directory_is_meta(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "directory").mkdir()
    before = {path: take(seen) for path, seen in look(tmp_path).items()}
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("y")
    (tmp_path / "directory").chmod(0o700)
    after = look(tmp_path)
    verdicts = {path: changed(after[path], *before[path]) for path in before}
    assert verdicts[b"workspace/link"] == "content"
    assert verdicts[b"workspace/directory"] == "meta"


def test_a_mode_that_changed_leaves_the_content_in_doubt(tmp_path: Path) -> None:
    """ctime moved with it, and may have moved for the content as well."""
    (tmp_path / "file").write_text("1")
    facts = take(look(tmp_path)[b"workspace/file"])
    (tmp_path / "file").chmod(0o600)
    assert changed(look(tmp_path)[b"workspace/file"], *facts) == "doubt"


EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("overwrite"), st.binary(min_size=4, max_size=4)),
        st.tuples(st.just("replace"), st.binary(min_size=4, max_size=4)),
        st.tuples(st.just("swap"), st.binary(min_size=4, max_size=4)),
        st.tuples(st.just("grow"), st.binary(min_size=1, max_size=2)),
        st.tuples(st.just("shrink"), st.just(b"")),
        st.tuples(st.just("chmod"), st.just(b"")),
    ),
    min_size=1,
    max_size=4,
)


@given(edits=EDITS, settled=st.booleans())
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
def test_whatever_was_done_to_the_content_is_never_the_same(
    tmp_path: Path, edits: list[tuple[str, bytes]], settled: bool
) -> None:
    """Also within the tick of the checkpoint, at the same size, with mtime put back."""
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    path.chmod(0o644)
    seen = look(tmp_path)[b"workspace/file"]
    if settled:
        state, entry, taken_ns = take(seen)
    else:
        state, entry, taken_ns = State.of(seen), entry_of(seen), time.time_ns()
    for edit, data in edits:
        if edit == "overwrite":
            with path.open("r+b") as file:
                file.write(data)
        elif edit == "replace":
            path.unlink()
            path.write_bytes(data)
        elif edit == "swap":
            (tmp_path / "other").write_bytes(data)
            os.replace(tmp_path / "other", path)
        elif edit == "grow":
            with path.open("ab") as file:
                file.write(data)
        elif edit == "shrink":
            os.truncate(path, max(path.stat().st_size - 1, 0))
        else:
            path.chmod(0o644)
        os.utime(path, ns=(seen.mtime_ns, seen.mtime_ns))
    now = look(tmp_path)[b"workspace/file"]
    verdict = changed(now, state, entry, taken_ns)
    if path.read_bytes() != b"1234":
        assert verdict in ("doubt", "content")
    if now.size != 4:
        assert verdict == "content"


def test_a_store_through_a_mapping_moves_no_ctime(tmp_path: Path) -> None:
    """Why what is mapped must be left out of the states: nothing in them would tell."""
    import mmap

    path = tmp_path / "file"
    path.write_bytes(b"\0" * 4096)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        mapped[0] = 1
        facts = take(look(tmp_path)[b"workspace/file"])
        mapped[0] = 2
        now = look(tmp_path)[b"workspace/file"]
        if now.ctime_ns != facts[0].ctime_ns:
            pytest.skip("the page was written back in between")
        assert changed(now, None, facts[1], facts[2]) == "doubt"
