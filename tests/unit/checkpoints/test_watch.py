"""Watches name every change that another process makes, or say that they cannot."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen_mcp.core.limits import MIB
from codegen_mcp.engine.checkpoints.fanotify_watch import FanotifyWatch
from codegen_mcp.engine.checkpoints.inotify_watch import InotifyWatch
from codegen_mcp.engine.checkpoints.tree_watch import Changes, NoWatch, TreeWatch
from codegen_mcp.engine.checkpoints.watches import start_watch
from codegen_mcp.engine.checkpoints.writers import mapped_writers
from codegen_mcp.testing.kernel_objects import nothing_left
from codegen_mcp.testing.small_host import small_host
from codegen_mcp.testing.tree_editor import Edit, TreeEditor

NAMES = (b"workspace", b"venv")
PATHS = st.sampled_from(
    ["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/b", "f", "f/a", "f/g", "f/g/a"]
).map("workspace/{}".format)
EDITS = st.one_of(
    st.tuples(st.just("write"), PATHS, st.integers(0, 9)),
    st.tuples(st.just("save"), PATHS, st.integers(0, 9)),
    st.tuples(st.sampled_from(["append", "truncate", "mkdir", "remove", "fifo"]), PATHS),
    st.tuples(st.just("overwrite"), PATHS, st.integers(0, 255)),
    st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o600, 0o755, 0o700])),
    st.tuples(st.just("touch"), PATHS, st.integers(0, 10**9)),
    st.tuples(st.sampled_from(["rename", "link"]), PATHS, PATHS),
    st.tuples(st.just("symlink"), st.just("x"), PATHS),
    st.tuples(st.sampled_from(["hold", "nameless"]), PATHS),
    st.tuples(st.just("write_held")),
)
SEQUENCES = st.lists(EDITS, max_size=14)
many = settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def editor() -> Iterator[TreeEditor]:
    with TreeEditor() as started:
        yield started


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A small ext4 of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    with nothing_left(tmp_path), small_host(tmp_path, 16 * MIB) as root:
        yield root


@contextmanager
def session(parent: Path) -> Iterator[Path]:
    """A directory with the trees of a session."""
    for name in NAMES:
        (parent / os.fsdecode(name)).mkdir()
    try:
        yield parent
    finally:
        for name in NAMES:
            shutil.rmtree(parent / os.fsdecode(name))


@contextmanager
def watching(kind: type[Any], root: Path) -> Iterator[TreeWatch]:
    fd = os.open(root, os.O_RDONLY)
    watch: TreeWatch = kind(fd, NAMES)
    try:
        watch.start()
    finally:
        os.close(fd)
    try:
        yield watch
    finally:
        watch.close()


Facts = tuple[object, ...]


def snapshot(root: Path) -> dict[bytes, Facts]:
    """Everything that a checkpoint has of a tree."""
    found: dict[bytes, Facts] = {}
    prefix = len(os.fsencode(root)) + 1
    for name in NAMES:
        for top, directories, files in os.walk(os.path.join(os.fsencode(root), name)):
            for path in [top, *(os.path.join(top, one) for one in (*directories, *files))]:
                there = os.lstat(path)
                content = b""
                if stat.S_ISREG(there.st_mode):
                    content = Path(os.fsdecode(path)).read_bytes()
                elif stat.S_ISLNK(there.st_mode):
                    content = os.readlink(path)
                found[path[prefix:]] = (
                    there.st_ino,
                    there.st_mode,
                    there.st_mtime_ns,
                    content,
                )
    return found


def unexplained(
    before: dict[bytes, Facts], after: dict[bytes, Facts], changes: Changes, known: set[int]
) -> list[bytes]:
    """Paths that differ without having been told."""
    if changes.overflow:
        return []
    left = []
    for path in before.keys() | after.keys():
        if before.get(path) == after.get(path) or path in changes.paths:
            continue
        inodes = {facts[0] for facts in (before.get(path), after.get(path)) if facts}
        if inodes & (changes.inodes | known):
            continue
        names = path.split(b"/")
        above = {b"/".join(names[:count]) for count in range(1, len(names) + 1)}
        if not above & changes.trees:
            left.append(path)
    return left


def check(
    kind: type[Any], root: Path, editor: TreeEditor, first: list[Edit], then: list[list[Edit]]
) -> None:
    with session(root):
        try:
            editor.edit(root, first)
            with watching(kind, root) as watch:
                before = snapshot(root)
                changes = Changes()
                for edits in then:
                    editor.edit(root, edits)
                    changes.add(watch.drain())
                after = snapshot(root)
                known = mapped_writers([editor.pid]).inodes if kind is InotifyWatch else set()
                assert unexplained(before, after, changes, known) == []
                assert changes.trees <= changes.paths or changes.overflow
                event_free = watch.drain()
                assert not event_free.paths - {b"workspace", b"venv"} or changes.overflow
        finally:
            editor.edit(root, [("release",)])


@many
@given(first=SEQUENCES, then=st.lists(SEQUENCES, min_size=1, max_size=3))
def test_inotify_tells_of_every_change(
    editor: TreeEditor, first: list[Edit], then: list[list[Edit]]
) -> None:
    root = Path(tempfile.mkdtemp(prefix="watch-"))
    try:
        check(InotifyWatch, root, editor, first, then)
    finally:
        root.rmdir()


@many
@given(first=SEQUENCES, then=st.lists(SEQUENCES, min_size=1, max_size=3))
def test_fanotify_tells_of_every_change(
    volume: Path, editor: TreeEditor, first: list[Edit], then: list[list[Edit]]
) -> None:
    check(FanotifyWatch, volume, editor, first, then)


@pytest.fixture(params=["fanotify", "inotify"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[type[Any], Path]]:
    """A kind of watch, and a session's directory where it works."""
    with ExitStack() as stack:
        if request.param == "fanotify":
            root = request.getfixturevalue("volume")
            kind: type[Any] = FanotifyWatch
        else:
            root, kind = tmp_path / "root", InotifyWatch
            root.mkdir()
        yield kind, stack.enter_context(session(root))


def test_nothing_is_told_of_what_is_only_read(ground: tuple[type[Any], Path]) -> None:
    kind, root = ground
    (root / "workspace" / "a").write_text("1")
    with watching(kind, root) as watch:
        (root / "workspace" / "a").read_text()
        list((root / "workspace").iterdir())
        os.stat(root / "workspace" / "a")
        assert not watch.drain()


def test_a_drain_tells_each_change_once(ground: tuple[type[Any], Path], editor: TreeEditor) -> None:
    kind, root = ground
    with watching(kind, root) as watch:
        editor.edit(root, [("write", "venv/a", 3)])
        assert watch.drain().paths == {b"venv", b"venv/a"}
        assert not watch.drain()


def test_all_below_a_directory_that_moved_is_told_by_its_old_and_new_name(
    ground: tuple[type[Any], Path], editor: TreeEditor
) -> None:
    kind, root = ground
    (root / "workspace" / "old" / "deep").mkdir(parents=True)
    with watching(kind, root) as watch:
        editor.edit(root, [("rename", "workspace/old", "workspace/new")])
        assert watch.drain().trees == {b"workspace/old", b"workspace/new"}
        editor.edit(root, [("write", "workspace/new/deep/a", 1)])
        assert b"workspace/new/deep/a" in watch.drain().paths


def test_what_happens_in_a_new_directory_is_told_afterwards(
    ground: tuple[type[Any], Path], editor: TreeEditor
) -> None:
    kind, root = ground
    with watching(kind, root) as watch:
        editor.edit(root, [("mkdir", "workspace/d"), ("mkdir", "workspace/d/e")])
        assert b"workspace/d" in watch.drain().trees
        editor.edit(root, [("write", "workspace/d/e/a", 1)])
        assert {b"workspace/d/e", b"workspace/d/e/a"} <= watch.drain().paths


def test_changes_outside_the_trees_are_not_told(
    ground: tuple[type[Any], Path], editor: TreeEditor
) -> None:
    kind, root = ground
    (root / "other").mkdir()
    try:
        with watching(kind, root) as watch:
            editor.edit(root, [("write", "other/a", 1), ("write", "beside", 1)])
            assert not watch.drain().paths
    finally:
        shutil.rmtree(root / "other")
        (root / "beside").unlink()


def test_writing_through_a_name_that_is_gone_concerns_the_names_that_are_left(
    ground: tuple[type[Any], Path], editor: TreeEditor
) -> None:
    kind, root = ground
    editor.edit(
        root,
        [
            ("write", "workspace/b", 5),
            ("link", "workspace/b", "workspace/a"),
            ("hold", "workspace/b"),
            ("remove", "workspace/b"),
        ],
    )
    left = (root / "workspace" / "a").stat()
    with watching(kind, root) as watch:
        editor.edit(root, [("write_held",), ("release",)])
        changes = watch.drain()
        assert changes.overflow or left.st_ino in changes.inodes


def test_the_end_of_a_mapping_is_told(ground: tuple[type[Any], Path], editor: TreeEditor) -> None:
    """Stores tell nothing, the last close does: what is mapped still is for mapped_writers."""
    kind, root = ground
    editor.edit(root, [("write", "workspace/a", 9), ("map", "workspace/a")])
    with watching(kind, root) as watch:
        editor.edit(root, [("store", 7)])
        assert not watch.drain()
        editor.edit(root, [("unmap",)])
        assert b"workspace/a" in watch.drain().paths


def test_more_than_can_be_kept_is_an_overflow(
    ground: tuple[type[Any], Path], editor: TreeEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, root = ground
    for module in ("fanotify_watch", "inotify_reading"):
        monkeypatch.setattr(f"codegen_mcp.engine.checkpoints.{module}.MAX_CHANGES", 20)
    with watching(kind, root) as watch:
        editor.edit(root, [("write", f"workspace/{number}", 1) for number in range(40)])
        assert watch.drain().overflow


def test_changes_that_are_added_up_stay_an_overflow() -> None:
    changes = Changes()
    changes.add(Changes(overflow=True))
    changes.add(Changes(paths={b"workspace/a"}))
    assert changes.overflow


def test_no_watch_says_so_at_every_drain() -> None:
    watch = NoWatch()
    watch.start()
    assert watch.drain().overflow
    assert watch.drain().overflow
    watch.close()


def test_the_queue_of_inotify_running_over_is_an_overflow(
    tmp_path: Path, editor: TreeEditor
) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 20_000:
        pytest.skip(f"{limit} events are too many to make in a moment")
    with session(tmp_path) as root, watching(InotifyWatch, root) as watch:
        names = itertools.cycle(["workspace/a", "workspace/b"])  # equal neighbours would be one
        edits = [
            ("touch", name, number) for number, name in zip(range(limit + 10), names, strict=False)
        ]
        editor.edit(root, [("write", "workspace/a", 1), ("write", "workspace/b", 1), *edits])
        assert watch.drain().overflow
        assert watch.drain().overflow


def test_a_directory_that_cannot_be_watched_is_an_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codegen_mcp.engine.checkpoints.inotify_watch.MAX_WATCHES", 5)
    with session(tmp_path) as root:
        for number in range(10):
            (root / "workspace" / str(number)).mkdir()
        with watching(InotifyWatch, root) as watch:
            assert watch.drain().overflow


def test_the_best_watch_that_is_to_be_had_is_chosen(volume: Path, tmp_path: Path) -> None:
    def chosen(root: Path, *, descriptors: bool = True) -> str:
        fd = os.open(root, os.O_RDONLY)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if not descriptors:  # the next one would be above this one
            resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, hard))
        try:
            watch = start_watch(fd, NAMES)
            watch.close()
            watch.close()
            return watch.name
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(fd)

    plain = tmp_path / "plain"
    plain.mkdir()
    with session(volume), session(plain):
        before = len(os.listdir("/proc/self/fd"))
        assert chosen(volume) == "fanotify"
        assert chosen(plain) == "inotify"
        assert chosen(plain, descriptors=False) == "none"
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_slot_that_is_renamed_while_it_is_watched_is_still_told_of(
    ground: tuple[type[Any], Path], editor: TreeEditor, tmp_path: Path
) -> None:
    kind, root = ground
    if kind is FanotifyWatch:
        pytest.skip("a mount point cannot be renamed")
    with watching(kind, root) as watch:
        moved = root.rename(tmp_path / "moved")
        editor.edit(moved, [("write", "workspace/a", 1)])
        assert b"workspace/a" in watch.drain().paths
        moved.rename(root)
