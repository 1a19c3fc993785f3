"""The walk over a session's tree: everything, in order, never out of it, whatever happens."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen_mcp.core.checkpoint import EntryKind
from codegen_mcp.core.errors import LimitExceeded
from codegen_mcp.engine.checkpoints.scan import MAX_PATH_BYTES, OPEN_LEVELS, Seen, scan
from codegen_mcp.sandbox.volumes.trees import remove_tree

NAMES = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from([b"a", b"a.", b"a-b", b"\xff\xfe", b"caf\xc3\xa9", b"x" * 255]),
).filter(lambda name: not {0, ord("/")} & set(name) and name not in (b".", b".."))
TREES = st.recursive(
    st.sampled_from(["file", "link", "fifo"]),
    lambda below: st.dictionaries(NAMES, below),
    max_leaves=20,
)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    top = tmp_path / "workspace"
    top.mkdir()
    yield top
    remove_tree(top)


def walk(root: Path, **options: object) -> list[Seen]:
    fd = os.open(root, os.O_PATH)
    before = len(os.listdir("/proc/self/fd"))
    try:
        found = list(scan(fd, b"workspace", **options))  # type: ignore[arg-type]
        assert len(os.listdir("/proc/self/fd")) == before
        return found
    finally:
        os.close(fd)


def paths(found: list[Seen]) -> list[bytes]:
    return [seen.path for seen in found]


def by_path(found: list[Seen]) -> dict[bytes, Seen]:
    return {seen.path: seen for seen in found}


def build(at: bytes, tree: object) -> list[bytes]:
    """Make a tree; its paths in the order of a walk."""
    made = [at]
    if isinstance(tree, dict):
        os.mkdir(at)
        for name in sorted(tree):
            made += build(at + b"/" + name, tree[name])
    elif tree == "file":
        Path(os.fsdecode(at)).write_bytes(at[-3:])
    elif tree == "link":
        os.symlink(b"/etc/passwd", at)
    else:
        os.mkfifo(at)
    return made


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, TREES, max_size=8))
def test_every_name_is_seen_once_in_order_with_what_lstat_says(tree: dict[bytes, object]) -> None:
    base = tempfile.mkdtemp(prefix="scan-")
    top = os.fsencode(base) + b"/workspace"
    try:
        made = build(top, tree)
        found = walk(Path(os.fsdecode(top)))
        assert paths(found) == [path[len(base) + 1 :] for path in made]
        for seen, path in zip(found, made, strict=True):
            there = os.lstat(path)
            assert seen.mode == stat.S_IMODE(there.st_mode)
            assert seen.mtime_ns == there.st_mtime_ns
            assert seen.ctime_ns == there.st_ctime_ns
            assert (seen.size, seen.ino, seen.nlink) == (
                there.st_size,
                there.st_ino,
                there.st_nlink,
            )
            assert seen.target == (os.readlink(path) if stat.S_ISLNK(there.st_mode) else b"")
    finally:
        shutil.rmtree(base)


def test_kinds_are_told_and_what_is_never_saved_has_none(root: Path) -> None:
    (root / "file").write_text("1")
    (root / "directory").mkdir()
    (root / "link").symlink_to("/nowhere")
    os.mkfifo(root / "pipe")
    # A short path: the address of a socket has 108 bytes.
    here = os.open(root, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{here}/socket")
    os.close(here)
    kinds = {seen.path: seen.kind for seen in walk(root)}
    assert kinds == {
        b"workspace": EntryKind.DIRECTORY,
        b"workspace/directory": EntryKind.DIRECTORY,
        b"workspace/file": EntryKind.FILE,
        b"workspace/link": EntryKind.SYMLINK,
        b"workspace/pipe": EntryKind.FIFO,
        b"workspace/socket": None,
    }


def test_links_are_never_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    (root / "out").symlink_to(outside)
    (root / "up").symlink_to("..")
    found = by_path(walk(root))
    assert set(found) == {b"workspace", b"workspace/out", b"workspace/up"}
    assert found[b"workspace/up"].target == b".."


def test_the_second_name_of_a_file_is_a_hard_link_to_the_first(root: Path) -> None:
    (root / "z").write_text("1")
    (root / "b").mkdir()
    os.link(root / "z", root / "b" / "y")
    os.link(root / "z", root / "c")
    (root / "alone").touch()
    found = by_path(walk(root))
    assert found[b"workspace/b/y"].kind is EntryKind.FILE
    for name in (b"workspace/c", b"workspace/z"):
        assert found[name].kind is EntryKind.HARDLINK
        assert found[name].target == b"workspace/b/y"
    assert found[b"workspace/alone"].kind is EntryKind.FILE


def test_names_of_a_link_are_links_of_their_own(root: Path) -> None:
    (root / "a").symlink_to("x")
    os.link(root / "a", root / "b", follow_symlinks=False)
    assert [(seen.kind, seen.target) for seen in walk(root)[1:]] == [(EntryKind.SYMLINK, b"x")] * 2


def test_hard_links_across_two_trees_are_found_with_a_common_table(root: Path) -> None:
    (root / "a").touch()
    other = root.parent / "venv"
    other.mkdir()
    os.link(root / "a", other / "b")
    known: dict[tuple[int, int], bytes] = {}
    walk(root, first_names=known)
    fd = os.open(other, os.O_RDONLY)
    found = list(scan(fd, b"venv", first_names=known))
    os.close(fd)
    assert found[1].kind is EntryKind.HARDLINK
    assert found[1].target == b"workspace/a"


def test_a_name_is_skipped_everywhere_and_a_path_at_its_place(root: Path) -> None:
    for directory in (root, root / "d"):
        directory.mkdir(exist_ok=True)
        (directory / "tmp").mkdir()
        (directory / "tmp" / "inside").touch()
        (directory / "once").touch()
    assert paths(walk(root, skip={b"tmp", b"workspace/d/once"})) == [
        b"workspace",
        b"workspace/d",
        b"workspace/once",
    ]


def nest(root: Path, depth: int, name: str = "n") -> None:
    """Make a chain of directories with a file in each, deeper than paths can say."""
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        os.close(os.open("z", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def test_a_tree_deeper_than_descriptors_and_paths_is_walked_whole(root: Path) -> None:
    depth = 3000
    assert depth > OPEN_LEVELS
    assert 2 * depth > os.pathconf(root, "PC_PATH_MAX")
    nest(root, depth)
    found = paths(walk(root))
    down = [b"workspace" + b"/n" * level for level in range(depth + 1)]
    assert found == [*down, *(path + b"/z" for path in reversed(down[1:]))]


def test_a_path_too_long_for_a_checkpoint_is_refused_by_name(root: Path) -> None:
    nest(root, MAX_PATH_BYTES // 256 + 1, "n" * 255)
    with pytest.raises(LimitExceeded, match="delete it, or move it up"):
        walk(root)


def test_a_walk_that_is_given_up_keeps_nothing_open(root: Path) -> None:
    nest(root, 200)
    fd = os.open(root, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    walking = scan(fd, b"workspace")
    for _ in range(150):
        next(walking)
    assert len(os.listdir("/proc/self/fd")) > before
    walking.close()
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)


@pytest.mark.parametrize("becomes", ["gone", "file", "link", "directory"])
def test_what_changes_on_the_way_is_taken_as_it_is_when_reached(root: Path, becomes: str) -> None:
    for name in ("a", "m", "z"):
        (root / name).mkdir()
        (root / name / "below").touch()
    fd = os.open(root, os.O_RDONLY)
    walking = scan(fd, b"workspace")
    found = [next(walking), next(walking)]
    assert found[1].path == b"workspace/a"
    shutil.rmtree(root / "m")
    if becomes == "file":
        (root / "m").touch()
    elif becomes == "link":
        (root / "m").symlink_to(root / "z")
    elif becomes == "directory":
        (root / "m").mkdir()
        (root / "m" / "other").touch()
    found += walking
    os.close(fd)
    now = {
        "gone": [],
        "file": [(b"workspace/m", EntryKind.FILE)],
        "link": [(b"workspace/m", EntryKind.SYMLINK)],
        "directory": [
            (b"workspace/m", EntryKind.DIRECTORY),
            (b"workspace/m/other", EntryKind.FILE),
        ],
    }[becomes]
    assert [(seen.path, seen.kind) for seen in found if b"/m" in seen.path] == now
    assert found[-1].path == b"workspace/z/below"


def test_a_directory_moved_out_of_the_tree_is_not_a_way_out(root: Path, tmp_path: Path) -> None:
    """The walk comes back up through what it holds, or from the root; never through ``..``."""
    depth = OPEN_LEVELS + 20
    nest(root, depth)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    fd = os.open(root, os.O_RDONLY)
    walking = scan(fd, b"workspace")
    found = [next(walking) for _ in range(depth + 1)]
    # Cut between the levels that were parked and those that are open.
    cut = root / "/".join("n" * 10)
    cut.rename(outside / "moved")
    found += walking
    os.close(fd)
    assert b"workspace" + b"/n" * 9 + b"/z" in paths(found)
    assert not [seen for seen in found if b"secret" in seen.path or b"moved" in seen.path]
    shutil.rmtree(outside)


def test_a_walk_survives_a_tree_that_never_rests(root: Path) -> None:
    """Directories become files and links and back, while walks go on; each walk stays inside."""
    (root / "keep").touch()
    stop = threading.Event()

    def churn() -> None:
        at = 0
        while not stop.is_set():
            at += 1
            path = root / f"n{at % 5}"
            if path.is_symlink() or path.is_file():
                path.unlink()
            elif path.is_dir():
                shutil.rmtree(path)
            elif at % 3 == 0:
                path.symlink_to("/etc")
            elif at % 3 == 1:
                path.touch()
            else:
                (path / "d" / "e").mkdir(parents=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            found = paths(walk_loose(root))
            assert b"workspace/keep" in found
            assert len(set(found)) == len(found)
            assert not [path for path in found if b"passwd" in path]
    finally:
        stop.set()
        thread.join()


def walk_loose(root: Path) -> list[Seen]:
    fd = os.open(root, os.O_PATH)
    try:
        return list(scan(fd, b"workspace"))
    finally:
        os.close(fd)


_AS_OWNER = """
import os, sys
from codegen_mcp.core.errors import WrongState
from codegen_mcp.engine.checkpoints.scan import scan
root, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)  # after the imports: a checkout may lie below a closed home
fd = os.open(root, os.O_RDONLY)
try:
    for seen in scan(fd, b"workspace"):
        print(seen.path.decode(), oct(seen.mode))
except WrongState as error:
    print(error.reason, error.message)
for name in ("closed", "closed/inner"):
    try:
        print(name, oct(os.stat(os.path.join(root, name)).st_mode & 0o7777))
    except PermissionError:
        print(name, "denied")
"""


def as_user(root: Path, uid: int) -> list[str]:
    """Walk as another user, by a process that may open the tree's root."""
    done = subprocess.run(
        [sys.executable, "-c", _AS_OWNER, str(root), str(uid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming other users needs root")


@pytest.fixture
def open_root() -> Iterator[Path]:
    """A tree that every user can reach, unlike the directories that pytest makes."""
    base = Path(tempfile.mkdtemp(prefix="scan-", dir="/var/tmp"))
    base.chmod(0o755)
    (base / "workspace").mkdir()
    yield base / "workspace"
    shutil.rmtree(base)


@needs_root
def test_a_closed_directory_of_the_workers_own_is_read_and_stays_as_it_was(
    open_root: Path,
) -> None:
    inner = open_root / "closed" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    uid = 61_777
    for path in (open_root, open_root / "closed", inner, inner / "file"):
        os.chown(path, uid, uid)
    inner.chmod(0o200)
    (open_root / "closed").chmod(0o000)
    assert as_user(open_root, uid) == [
        "workspace 0o755",
        "workspace/closed 0o0",
        "workspace/closed/inner 0o200",
        "workspace/closed/inner/file 0o644",
        "closed 0o0",
        "closed/inner denied",
    ]
    assert stat.S_IMODE(inner.stat().st_mode) == 0o200


@needs_root
def test_a_directory_that_may_not_be_read_is_named_with_its_remedy(open_root: Path) -> None:
    (open_root / "closed").mkdir(mode=0o700)
    (open_root / "closed").chmod(0o700)
    said = as_user(open_root, 61_777)
    assert said[1].startswith("UNREADABLE_DIRECTORY directory 'workspace/closed'")
    assert "chmod u+rx" in said[1]


@needs_root
def test_root_reads_closed_directories_without_touching_them(root: Path) -> None:
    (root / "closed").mkdir()
    (root / "closed" / "file").touch()
    (root / "closed").chmod(0o000)
    before = os.stat(root / "closed")
    assert b"workspace/closed/file" in paths(walk(root))
    assert os.stat(root / "closed").st_ctime_ns == before.st_ctime_ns


def test_a_root_that_is_no_directory_is_an_error(root: Path) -> None:
    (root / "file").touch()
    fd = os.open(root / "file", os.O_PATH)
    try:
        with pytest.raises(OSError, match="No such file"):
            list(scan(fd, b"workspace"))
    finally:
        os.close(fd)
