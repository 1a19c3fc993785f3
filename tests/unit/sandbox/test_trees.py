"""Removing trees: neither depth, nor links, nor modes are in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from codegen_mcp.sandbox.volumes.trees import chown_tree, remove_tree


def make_deep(root: Path, depth: int, name: str) -> None:
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=current)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        os.close(current)
        current = below
    os.close(current)


def test_a_tree_far_deeper_than_any_path_goes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_deep(tree, 1500, "d" * 200)
    before = len(os.listdir("/proc/self/fd"))
    remove_tree(tree)
    assert not tree.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "to_dir").symlink_to(outside)
    (tree / "sub" / "to_file").symlink_to(outside / "precious")
    (tree / "loop").symlink_to(".")
    os.link(outside / "precious", tree / "hard")
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "precious").read_text() == "kept"


def test_a_link_in_its_place_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "tree").symlink_to("outside")
    remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


def test_every_kind_of_file_and_name_goes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "fifo")
    os.mkdir(bytes(tree) + b"/\xff\xfe")
    os.mkdir(bytes(tree) + b"/\xff\xfe/new\nline")
    for number in range(2000):
        (tree / str(number)).touch()
    for number in range(300):
        (tree / f"dir{number}" / "sub").mkdir(parents=True)
    remove_tree(tree)
    assert not tree.exists()


def test_what_is_missing_is_fine(tmp_path: Path) -> None:
    remove_tree(tmp_path / "missing")


SCRIPT = """
import os, pathlib, sys
from codegen_mcp.sandbox.volumes.trees import remove_tree
os.setuid(int(sys.argv[2]))
root = pathlib.Path(sys.argv[1]) / "tree"
current = root
for depth in range(5):
    current.mkdir()
    (current / "file").write_text("x")
    (current / "sibling").mkdir()
    (current / "sibling" / "file").write_text("x")
    current = current / "d"
current = root
paths = []
for depth in range(5):
    paths.append(current)
    current = current / "d"
for path in reversed(paths):
    os.chmod(path / "sibling", 0)
    os.chmod(path, 0o400 if len(paths) % 2 else 0)
remove_tree(root)
sys.exit(root.exists())
"""


@pytest.mark.parametrize("uid", sorted({os.geteuid(), 65534}))
def test_hostile_modes_stop_neither_root_nor_an_ordinary_user(uid: int) -> None:
    if uid != os.geteuid() and os.geteuid() != 0:
        pytest.skip("running as another user needs root")
    with tempfile.TemporaryDirectory(dir="/tmp") as work:
        os.chown(work, uid, -1)
        result = subprocess.run(
            [sys.executable, "-B", "-c", SCRIPT, work, str(uid)],
            capture_output=True,
            text=True,
            check=False,
        )
        remove_tree(Path(work, "tree"))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_a_whole_tree_gets_another_owner_and_what_links_point_to_does_not(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("")
    tree = tmp_path / "tree"
    tree.mkdir()
    make_deep(tree, 300, "d" * 100)
    (tree / "link").symlink_to(outside)
    (tree / "locked").mkdir(mode=0)
    chown_tree(tree, 234_567, 234_568)
    assert outside.stat().st_uid == 0
    found = subprocess.run(
        ["find", tree, "-not", "(", "-uid", "234567", "-gid", "234568", ")"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == ""
    assert (tree / "locked").stat().st_mode & 0o777 == 0
    remove_tree(tree)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_all_of_a_tree_is_given_away_and_modes_stay(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for directory in ("many", "few/below"):
        (tree / directory).mkdir(parents=True)
    for number in range(100):
        (tree / "many" / str(number)).touch()
    (tree / "many" / "program").touch()
    (tree / "few" / "link").symlink_to("/etc/passwd")
    (tree / "many" / "program").chmod(0o6755)
    (tree / "few" / "below").chmod(0o2770)
    os.link(tree / "many" / "program", tree / "few" / "same")
    before = {path: path.lstat().st_mode for path in tree.rglob("*")}
    owner = os.stat("/etc/passwd").st_uid
    chown_tree(tree, 200_010, 200_011)
    assert {path: path.lstat().st_mode for path in tree.rglob("*")} == before
    found = [path.lstat() for path in (tree, *tree.rglob("*"))]
    assert {(one.st_uid, one.st_gid) for one in found} == {(200_010, 200_011)}
    assert os.stat("/etc/passwd").st_uid == owner
