from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Corrupt, LimitExceeded
from codegen_mcp.languages.python.wheelhouse import StagedFile, Wheelhouse
from codegen_mcp.languages.python.wheelhouse_index import View
from codegen_mcp.testing.manual_clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def house(tmp_path: Path, clock: ManualClock) -> Wheelhouse:
    return make(tmp_path, clock)


def make(directory: Path, clock: ManualClock, max_bytes: int = 10_000) -> Wheelhouse:
    house = Wheelhouse(directory / "wheels", max_bytes=max_bytes, max_file_bytes=5_000, clock=clock)
    house.open()
    return house


def stage(directory: Path, name: str, content: bytes = b"x" * 1000) -> StagedFile:
    path = directory / "job" / "out" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return StagedFile(name, hashlib.sha256(content).hexdigest())


def take(house: Wheelhouse, directory: Path, name: str, content: bytes, index: str = "i") -> str:
    return house.take_in(directory / "job", stage(directory, name, content), index)


def add(house: Wheelhouse, key: str, directory: Path, *names: str) -> View:
    wheels = {take(house, directory, name, name.encode() * 100): name for name in names}
    view = house.add_view(key, wheels, "i", pinned=False)
    assert view is not None
    return view


def test_a_view_shows_the_wheels_under_their_own_names(house: Wheelhouse, tmp_path: Path) -> None:
    view = add(house, "k", tmp_path, "a-1-py3-none-any.whl", "b-2-py3-none-any.whl")

    with house.using(view) as path:
        directory = house.root / path
        assert sorted(os.listdir(directory)) == ["a-1-py3-none-any.whl", "b-2-py3-none-any.whl"]
        assert {entry.stat().st_mode & 0o777 for entry in directory.iterdir()} == {0o444}


def test_a_wheel_is_kept_once_whatever_asks_for_it(house: Wheelhouse, tmp_path: Path) -> None:
    first = add(house, "k1", tmp_path, "a-1-py3-none-any.whl")
    add(house, "k2", tmp_path, "a-1-py3-none-any.whl", "b-1-py3-none-any.whl")

    assert len(os.listdir(house.root / "files")) == 2
    assert house.find("k1") is first


@pytest.mark.parametrize(
    "name",
    [
        "../evil-1-py3-none-any.whl",
        ".hidden-1-py3-none-any.whl",
        "evil.whl",
        "evil-1.tar.gz.whl",
        "-evil-1-py3-none-any.whl",
        "a-1-py3-none-any.whl/..",
    ],
)
def test_a_file_whose_name_is_no_wheels_is_refused(
    house: Wheelhouse, tmp_path: Path, name: str
) -> None:
    with pytest.raises(Corrupt):
        house.take_in(tmp_path, StagedFile(name, ""), "i")


def test_a_wrong_hash_is_refused_and_nothing_kept(house: Wheelhouse, tmp_path: Path) -> None:
    stage(tmp_path, "a-1-py3-none-any.whl")

    with pytest.raises(Corrupt, match="nothing of it was kept"):
        house.take_in(tmp_path / "job", StagedFile("a-1-py3-none-any.whl", "0" * 64), "i")

    assert os.listdir(house.root / "files") == []


def test_a_file_above_the_limit_is_refused(house: Wheelhouse, tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded):
        take(house, tmp_path, "a-1-py3-none-any.whl", b"x" * 5_001)


@pytest.mark.parametrize("trick", ["symlink", "directory_link", "fifo", "directory"])
def test_a_staged_file_that_is_no_plain_file_is_refused(
    house: Wheelhouse, tmp_path: Path, trick: str
) -> None:
    name = "a-1-py3-none-any.whl"
    staged = stage(tmp_path, name)
    path = tmp_path / "job" / "out" / name
    path.unlink()
    if trick == "symlink":
        path.symlink_to("/etc/passwd")
    elif trick == "directory_link":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / name).write_bytes(b"x" * 1000)
        path.parent.rmdir()
        path.parent.symlink_to(tmp_path / "elsewhere")
    elif trick == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()

    with pytest.raises((Corrupt, IsADirectoryError)):
        house.take_in(tmp_path / "job", staged, "i")


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, clock: ManualClock) -> None:
    house = make(tmp_path, clock, max_bytes=5_000)
    old = add(house, "old", tmp_path, "a-1-py3-none-any.whl")
    clock.advance(1)
    add(house, "young", tmp_path, "b-1-py3-none-any.whl")
    clock.advance(1)
    with house.using(old):
        clock.advance(1)

    add(house, "new", tmp_path, "c-1-py3-none-any.whl")

    assert house.find("young") is None
    assert house.find("old") is old
    assert house.total_bytes <= 5_000


def test_what_is_in_use_is_not_evicted(tmp_path: Path, clock: ManualClock) -> None:
    house = make(tmp_path, clock, max_bytes=3_000)
    view = add(house, "old", tmp_path, "a-1-py3-none-any.whl")
    with house.using(view) as path:
        clock.advance(1)
        add(house, "new", tmp_path, "b-1-py3-none-any.whl")
        assert len(os.listdir(house.root / path)) == 1


def test_a_view_that_was_replaced_stays_until_it_is_left(house: Wheelhouse, tmp_path: Path) -> None:
    old = add(house, "k", tmp_path, "a-1-py3-none-any.whl")
    with house.using(old) as path:
        new = add(house, "k", tmp_path, "a-2-py3-none-any.whl")
        assert os.listdir(house.root / path) == ["a-1-py3-none-any.whl"]

    assert not (house.root / path).exists()
    assert house.find("k") is new


def test_a_restart_keeps_what_is_whole_and_deletes_the_rest(
    tmp_path: Path, clock: ManualClock
) -> None:
    house = make(tmp_path, clock)
    kept = add(house, "kept", tmp_path, "a-1-py3-none-any.whl")
    lost = add(house, "lost", tmp_path, "b-1-py3-none-any.whl")
    (house.root / "files" / f"{lost.files[0]}.whl").unlink()
    (house.root / "files" / ".half").write_bytes(b"half a wheel")
    (house.root / "views" / "unknown").mkdir()

    again = make(tmp_path, clock)

    found = again.find("kept")
    assert found is not None
    assert found.files == kept.files
    assert again.find("lost") is None
    assert os.listdir(again.root / "files") == [f"{kept.files[0]}.whl"]
    assert os.listdir(again.root / "views") == [kept.directory]


def test_an_index_of_a_newer_version_is_refused_by_name(tmp_path: Path, clock: ManualClock) -> None:
    make(tmp_path, clock)
    (tmp_path / "wheels" / "index.json").write_text(json.dumps({"format": 99}))

    with pytest.raises(Corrupt, match="format 99, newer than 1"):
        make(tmp_path, clock)


def test_an_index_that_was_cut_short_costs_only_the_cache(
    tmp_path: Path, clock: ManualClock
) -> None:
    add(make(tmp_path, clock), "k", tmp_path, "a-1-py3-none-any.whl")
    (tmp_path / "wheels" / "index.json").write_text('{"format": 1, "fil')

    again = make(tmp_path, clock)

    assert again.find("k") is None
    assert os.listdir(again.root / "files") == []


def test_everything_has_the_index_own_wheels_and_the_local_ones(
    house: Wheelhouse, tmp_path: Path
) -> None:
    take(house, tmp_path, "a-1-py3-none-any.whl", b"a", index="mine")
    take(house, tmp_path, "b-1-py3-none-any.whl", b"b", index="other")
    take(house, tmp_path, "c-1.tar.gz", b"c", index="mine")
    (house.root / "local" / "d-1-py3-none-any.whl").write_bytes(b"d")

    view = house.add_everything("all", ["mine"])

    names = sorted(os.listdir(house.root / "views" / view.directory))
    assert names == ["a-1-py3-none-any.whl", "d-1-py3-none-any.whl"]
    assert house.add_everything("all", ["mine"]) is view


def test_views_and_files_can_be_entered_but_not_listed(house: Wheelhouse) -> None:
    modes = {name: (house.root / name).stat().st_mode & 0o777 for name in ("files", "views")}

    assert modes == {"files": 0o711, "views": 0o711}
