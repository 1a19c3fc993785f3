"""Copying trees: whatever a session can make is copied as it is, and nothing else is touched."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_mcp.core.limits import MIB
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.volumes.file_copy import Stopped
from codegen_mcp.sandbox.volumes.tree_copy import Copied, copy_tree
from codegen_mcp.sandbox.volumes.trees import remove_tree
from codegen_mcp.testing.tree_facts import tree_facts

ROOT = os.geteuid() == 0


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="codegen-copy-", dir="/var/tmp"))
    (directory / "from" / "part").mkdir(parents=True)
    (directory / "to").mkdir()
    yield directory
    remove_tree(directory)


def copy(place: Path, owner: HostIdentity | None = None) -> Copied:
    return copy_tree(place / "from", place / "to", ("part",), owner, threading.Event())


def assert_equal(place: Path) -> None:
    assert tree_facts(place / "to" / "part") == tree_facts(place / "from" / "part")
    assert os.listdir(place / "to") == ["part"]


def test_every_kind_of_name_is_copied_with_mode_time_and_content(place: Path) -> None:
    part = place / "from" / "part"
    (part / "empty").mkdir(mode=0o711)
    (part / "file").write_bytes(b"content" * 10_000)
    (part / "set-id").write_bytes(b"#!/bin/sh\n")
    (part / "set-id").chmod(0o6755)
    (part / "sticky").mkdir()
    (part / "sticky").chmod(0o3777)
    os.symlink("/etc/passwd", part / "link")
    os.symlink(b"\xff\xfe nowhere", part / "dangling")
    os.mkfifo(part / "fifo", 0o622)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(part / "socket"))
    (Path(os.fsdecode(bytes(part) + b"/\xff\xfe\n"))).write_bytes(b"any bytes")
    os.setxattr(part / "file", "user.note", b"\0\xff")
    for path in part.iterdir():
        os.utime(path, ns=(1, 1_234_567_890_123_456_789), follow_symlinks=False)
    os.utime(part / "file", ns=(0, -5_000_000_001))
    copy(place)
    assert_equal(place)
    assert os.getxattr(place / "to" / "part" / "file", "user.note") == b"\0\xff"


def test_hard_links_stay_links_across_directories(place: Path) -> None:
    part = place / "from" / "part"
    (part / "a").mkdir()
    (part / "b").mkdir()
    (part / "a" / "first").write_bytes(b"shared")
    for name in ("a/second", "b/third", "z"):
        os.link(part / "a" / "first", part / name)
    os.link(part / "a" / "first", place / "from" / "outside")
    copy(place)
    assert_equal(place)
    made = place / "to" / "part"
    assert len({(made / name).stat().st_ino for name in ("a/first", "a/second", "b/third")}) == 1
    assert (made / "z").stat().st_nlink == 4


def test_holes_stay_holes_and_what_lies_between_them_is_copied(place: Path) -> None:
    part = place / "from" / "part"
    with open(part / "sparse", "wb") as file:
        for offset in (3 * MIB, 40 * MIB):
            file.seek(offset)
            file.write(b"island" * 2000)
        file.truncate(64 * MIB + 7)
    with open(part / "only-a-hole", "wb") as file:
        file.truncate(10 * MIB)
    copied = copy(place)
    assert_equal(place)
    assert (place / "to" / "part" / "sparse").stat().st_blocks * 512 < MIB
    assert (place / "to" / "part" / "only-a-hole").stat().st_blocks == 0
    assert copied.bytes < MIB


def test_a_tree_far_deeper_than_any_path_goes(place: Path) -> None:
    current = os.open(place / "from" / "part", os.O_RDONLY)
    for depth in range(1500):
        os.mkdir("d" * 200, dir_fd=current)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=current)
        os.close(os.open(f"f{depth % 3}", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        os.close(current)
        current = below
    os.close(current)
    before = len(os.listdir("/proc/self/fd"))
    copy(place)
    assert len(os.listdir("/proc/self/fd")) == before
    counts = [
        subprocess.check_output(["find", place / side / "part", "-printf", "x"])
        for side in ("from", "to")
    ]
    assert counts[0] == counts[1]
    assert len(counts[1]) == 3001


def test_a_link_in_place_of_a_directory_leads_nowhere(place: Path) -> None:
    outside = place / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    os.symlink(outside, place / "from" / "part" / "link")
    copy(place)
    assert (place / "to" / "part" / "link").is_symlink()
    os.rename(place / "from" / "part", place / "from" / "real")
    os.symlink(outside, place / "from" / "part")
    remove_tree(place / "to" / "part")
    with pytest.raises(OSError, match="Not a directory"):
        copy(place)
    assert (outside / "precious").read_text() == "kept"


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
def test_everything_belongs_to_the_new_owner_and_keeps_its_set_id_bits(place: Path) -> None:
    part = place / "from" / "part"
    (part / "d").mkdir()
    (part / "d" / "program").write_bytes(b"x")
    (part / "d" / "program").chmod(0o4711)
    os.symlink("x", part / "d" / "link")
    os.mkfifo(part / "d" / "fifo")
    copy(place, HostIdentity(uid=200_123, gid=200_124))
    made = place / "to" / "part"
    for path in (made, made / "d", *(made / "d").iterdir()):
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == (200_123, 200_124)
    assert stat.S_IMODE((made / "d" / "program").stat().st_mode) == 0o4711


def test_one_that_is_told_to_stop_leaves_the_source_as_it_was(place: Path) -> None:
    (place / "from" / "part" / "file").write_bytes(b"x")
    before = tree_facts(place / "from" / "part")
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        copy_tree(place / "from", place / "to", ("part",), None, stop)
    assert tree_facts(place / "from" / "part") == before


def test_what_was_made_of_it_does_not_change_with_the_source(place: Path) -> None:
    path = place / "from" / "part" / "file"
    path.write_bytes(b"before" * 1000)
    copy(place)
    path.write_bytes(b"after!" * 1000)
    assert (place / "to" / "part" / "file").read_bytes() == b"before" * 1000


SCRIPT = """
import json, os, pathlib, sys, threading
from codegen_mcp.sandbox.volumes.tree_copy import copy_tree
from codegen_mcp.testing.tree_facts import tree_facts
os.setgroups([]) if os.geteuid() == 0 else None
os.setgid(65534) if os.geteuid() == 0 else None
os.setuid(65534) if os.geteuid() == 0 else None
root = pathlib.Path(sys.argv[1])
(root / "from" / "part" / "locked" / "below").mkdir(parents=True)
(root / "to").mkdir()
(root / "from" / "part" / "locked" / "below" / "f").write_bytes(b"x" * 5000)
(root / "from" / "part" / "secret").write_bytes(b"y" * 5000)
os.setxattr(root / "from" / "part" / "secret", "user.a", b"1")
os.link(root / "from" / "part" / "secret", root / "from" / "part" / "secret2")
paths = ["secret", "locked/below/f", "locked/below", "locked"]
for name in paths:
    os.chmod(root / "from" / "part" / name, 0)
copy_tree(root / "from", root / "to", ("part",), None, threading.Event())
report = {}
for side in ("from", "to"):
    seen = []
    for name in reversed(paths):
        path = root / side / "part" / name
        seen.append(oct(path.stat().st_mode))
        os.chmod(path, 0o700)
    path = root / side / "part" / "secret"
    seen.append((path.read_bytes() == b"y" * 5000, path.stat().st_nlink))
    seen.append(os.getxattr(path, "user.a").decode())
    report[side] = seen
print(json.dumps(report))
"""


def test_modes_that_lock_out_an_ordinary_user_are_kept_on_both_sides() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        if ROOT:
            os.chown(work, 65534, 65534)
        done = subprocess.run(
            [sys.executable, "-B", "-c", SCRIPT, work], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        report: dict[str, list[Any]] = json.loads(done.stdout)
    assert report["from"] == report["to"]
    assert report["to"][:4] == ["0o40000", "0o40000", "0o100000", "0o100000"]


NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
TREES = st.recursive(
    st.one_of(st.binary(max_size=9000), st.integers(0, 0o7777)),
    lambda inner: st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def build(path: bytes, tree: Any, mtime: int) -> None:
    if isinstance(tree, dict):
        os.mkdir(path)
        for name, below in tree.items():
            build(path + b"/" + name, below, mtime + 1)
    elif isinstance(tree, bytes):
        with open(path, "wb") as file:
            file.write(tree)
    else:
        with open(path, "wb") as file:
            file.truncate(tree * 100)
        os.chmod(path, tree)
    os.utime(path, ns=(mtime, mtime))


@given(tree=st.dictionaries(NAMES, TREES, max_size=5), mtime=st.integers(0, 2**62))
@settings(max_examples=60, deadline=None)
def test_any_tree_is_equal_to_its_copy(tree: dict[bytes, Any], mtime: int) -> None:
    place = Path(tempfile.mkdtemp(prefix="codegen-copy-", dir="/var/tmp"))
    try:
        (place / "from").mkdir()
        (place / "to").mkdir()
        build(os.fsencode(place / "from" / "part"), tree, mtime % 2**61)
        copy(place)
        assert_equal(place)
    finally:
        remove_tree(place)
