"""The state directory: one worker at a time, readable only where it must be, versioned."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Corrupt, Unavailable, WrongState
from codegen_mcp.engine.state_directory import StateDirectory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_passable_and_not_listable(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "a" / "state").opened() as state:
        for path in (state.root, state.slots, state.sessions):
            assert mode(path) == 0o711
        assert mode(state.trash) == 0o700
        assert mode(state.new_slot()) == 0o711


def test_a_second_worker_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with (
        StateDirectory(tmp_path).opened(),
        pytest.raises(Unavailable, match="another worker") as caught,
    ):
        StateDirectory(tmp_path).open()
    assert caught.value.reason == "STATE_DIRECTORY_IN_USE"
    with StateDirectory(tmp_path).opened():
        pass


def test_the_lock_is_free_again_when_its_worker_was_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time\n"
        "from codegen_mcp.engine.state_directory import StateDirectory\n"
        "StateDirectory(pathlib.Path(sys.argv[1])).open()\n"
        "print('open', flush=True)\n"
        "time.sleep(60)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"open\n"
        with pytest.raises(Unavailable):
            StateDirectory(tmp_path).open()
    finally:
        worker.kill()
        worker.communicate()
    StateDirectory(tmp_path).open()


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"format": 7}))
    with pytest.raises(WrongState, match=r"state\.json' has format 7"):
        StateDirectory(tmp_path).open()
    assert json.loads((tmp_path / "state.json").read_text()) == {"format": 7}
    assert not (tmp_path / "sessions").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 0}', '{"format": "x"}'])
def test_a_damaged_format_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(Corrupt, match=r"state\.json"):
        StateDirectory(tmp_path).open()


def test_the_golden_state_of_format_1_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"format": 1}\n')
    with StateDirectory(tmp_path).opened():
        pass


def test_numbers_of_slots_that_still_lie_there_are_passed_over(tmp_path: Path) -> None:
    with StateDirectory(tmp_path).opened() as state:
        first = state.new_slot()
    with StateDirectory(tmp_path).opened() as state:
        assert state.new_slot() != first


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs root")
def test_a_directory_that_somebody_else_made_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(Unavailable, match="belongs to uid 12345"):
        StateDirectory(theirs).open()
    assert list(theirs.iterdir()) == []


def test_a_path_that_is_no_directory_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="--workspace"):
        StateDirectory(tmp_path / "file").open()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a link away needs root")
def test_a_link_that_somebody_else_made_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "state"
    link.symlink_to(tmp_path / "elsewhere")
    os.lchown(link, 12345, 12345)
    with pytest.raises(Unavailable, match="belongs to uid 12345"):
        StateDirectory(link).open()
    assert list((tmp_path / "elsewhere").iterdir()) == []
