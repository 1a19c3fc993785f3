"""A capture is the tree of one moment, whatever was done to it until then, and whenever."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from codegen_mcp.core.limits import MIB
from codegen_mcp.engine.checkpoints.capture import Capture, Stopped
from codegen_mcp.engine.checkpoints.fanotify_watch import FanotifyWatch
from codegen_mcp.engine.checkpoints.inotify_watch import InotifyWatch
from codegen_mcp.engine.checkpoints.tree_watch import NoWatch, TreeWatch
from codegen_mcp.engine.checkpoints.writers import mapped_writers
from codegen_mcp.testing.capture_rig import Shot, capture, restore
from codegen_mcp.testing.kernel_objects import nothing_left
from codegen_mcp.testing.random_tree import Edit, allocated, apply, edits, tree_of
from codegen_mcp.testing.refill_rig import make_volume
from codegen_mcp.testing.sandbox_child import ORDINARY_UID
from codegen_mcp.testing.small_host import small_host
from codegen_mcp.testing.tree_editor import TreeEditor

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
EXAMPLES = 1500 if SOAK else 12
KEPT_HOLE = 8192
"""Holes of up to a block, and what a file's map takes, need not come again."""
FILE = "workspace/file"
StartWatch = Callable[[int, Sequence[bytes]], TreeWatch]

pytestmark = pytest.mark.timeout(3600 if SOAK else 120)
many = settings(
    deadline=None,
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
steps = st.lists(edits(), max_size=6)


def started(kind: type[FanotifyWatch | InotifyWatch | NoWatch]) -> StartWatch:
    def start(fd: int, names: Sequence[bytes]) -> TreeWatch:
        watch: TreeWatch = NoWatch() if issubclass(kind, NoWatch) else kind(fd, names)
        watch.start()
        return watch

    return start


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of its own, as a session has."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    directory = tmp_path_factory.mktemp("capture")
    with nothing_left(directory), small_host(directory, 512 * MIB) as root:
        yield root


@pytest.fixture(params=[FanotifyWatch, InotifyWatch, NoWatch], ids=lambda kind: kind.name)
def watch(request: pytest.FixtureRequest) -> StartWatch:
    return started(request.param)


@pytest.fixture
def root(disk: Path) -> Iterator[Path]:
    """An empty volume: the whole disk is its file system."""
    volume = make_volume(disk)
    try:
        yield volume
    finally:
        apply(os.fsencode(disk), [("remove", b"workspace"), ("remove", b"venv")])


@pytest.fixture
def editor() -> Iterator[TreeEditor]:
    with TreeEditor() as process:
        yield process


def doing(root: Path, *changes: Edit) -> Callable[..., None]:
    return lambda *_: apply(os.fsencode(root), changes)


def check(shot: Shot, root: Path) -> None:
    """What was captured is the tree of its moment, and comes out again as it was."""
    with tempfile.TemporaryDirectory(dir=root) as directory:
        assert restore(shot, Path(directory)) == shot.tree
        taken, wanted = allocated(os.fsencode(directory)), allocated(os.fsencode(root))
    if shot.tree == tree_of(os.fsencode(root)):
        too_much = {p: n for p, n in taken.items() if n > wanted[p] + KEPT_HOLE}
        assert not too_much


@given(data=st.data())
@many
def test_any_edits_at_any_time_give_the_tree_of_the_moment(
    disk: Path, watch: StartWatch, data: st.DataObject
) -> None:
    """Through a chain, with edits before, while files are read, between rounds and afterwards."""
    root = make_volume(disk)
    try:
        shot = None
        for _ in range(data.draw(st.integers(1, 4))):
            apply(os.fsencode(root), data.draw(steps))
            during = data.draw(st.dictionaries(st.integers(0, 6), steps, max_size=2))
            shot = capture(
                root,
                shot,
                during={at: doing(root, *changes) for at, changes in during.items()},
                rounds=[doing(root, *c) for c in data.draw(st.lists(steps, max_size=2))],
                last=doing(root, *data.draw(steps)),
                after=doing(root, *data.draw(steps)),
                watch=watch,
            )
            check(shot, root)
    finally:
        apply(os.fsencode(disk), [("remove", b"workspace"), ("remove", b"venv")])


def test_a_store_through_a_mapping_that_is_gone_by_then_is_captured(
    root: Path, editor: TreeEditor, watch: StartWatch
) -> None:
    """The page is dirty before the file is read: the store changes no time, and makes no event."""
    editor.edit(root, [("write", FILE, 4096), ("map", FILE), ("store", 1)])
    shot = capture(
        root,
        rounds=[lambda: editor.edit(root, [("store", 2), ("unmap",)])],
        writers=lambda: mapped_writers([editor.pid]),
        watch=watch,
    )
    check(shot, root)


def test_a_store_through_a_mapping_that_is_gone_with_the_file_still_open_is_captured(
    root: Path, editor: TreeEditor, watch: StartWatch
) -> None:
    """No event tells of it, and nothing is mapped any more when everything stands still."""
    editor.edit(root, [("write", FILE, 4096), ("hold", FILE), ("map", FILE), ("store", 1)])
    shot = capture(
        root,
        rounds=[lambda: editor.edit(root, [("store", 2), ("unmap",)])],
        writers=lambda: mapped_writers([editor.pid]),
        watch=watch,
    )
    check(shot, root)


def test_stores_through_a_mapping_are_captured_time_and_again(
    root: Path, editor: TreeEditor, watch: StartWatch
) -> None:
    editor.edit(root, [("write", FILE, 4096), ("map", FILE)])
    shot = None
    for number in range(4):
        store = ("store", number)
        editor.edit(root, [store])
        shot = capture(
            root,
            shot,
            last=lambda s=number + 10: editor.edit(root, [("store", s)]),  # type: ignore[misc]
            writers=lambda: mapped_writers([editor.pid]),
            watch=watch,
        )
        check(shot, root)
    editor.edit(root, [("store", 99), ("unmap",)])
    check(capture(root, shot, watch=watch), root)


def test_writes_in_disguise_are_found_at_the_next_capture(root: Path, watch: StartWatch) -> None:
    """As many other bytes, with mtime set back, at once after the capture."""
    apply(os.fsencode(root), [("write", FILE.encode(), 1000, 1)])
    shot = None
    for seed in range(2, 8):
        disguise = doing(root, ("disguise", FILE.encode(), seed))
        shot = capture(root, shot, after=disguise, watch=watch)
        check(shot, root)


def test_a_hole_that_was_punched_into_zeros_is_a_change(root: Path) -> None:
    apply(os.fsencode(root), [("sparse", FILE.encode(), [], 400_000)])
    (root / FILE).write_bytes(bytes(400_000))
    full = capture(root)
    apply(os.fsencode(root), [("punch", FILE.encode(), 0, 90)])
    shot = capture(root, full)
    check(shot, root)


def test_what_nobody_touched_is_neither_packed_nor_copied(root: Path) -> None:
    apply(os.fsencode(root), [("write", b"workspace/%d" % n, 10_000, n) for n in range(1, 60)])
    apply(os.fsencode(root), [("link", b"workspace/1", b"venv/1"), ("touch", b"workspace/2", 5)])
    backdate(root)
    full = capture(root)
    assert full.copied == 0
    shot = capture(root, full, last=doing(root, ("write", b"workspace/7", 10_000, 99)))
    check(shot, root)
    assert shot.copied == 1
    assert len(shot.saved.tar) < 20_000


def test_files_that_are_merely_held_open_are_not_copied(root: Path, editor: TreeEditor) -> None:
    editor.edit(root, [("write", FILE, 100_000), ("hold", FILE)])
    backdate(root)
    shot = capture(root, writers=lambda: mapped_writers([editor.pid]))
    assert shot.copied == 0
    check(shot, root)


def test_rounds_leave_only_what_was_touched_last(root: Path) -> None:
    write = [doing(root, ("write", b"workspace/%d" % n, 9, n)) for n in range(4)]
    shot = capture(root, rounds=write, last=doing(root, ("write", b"workspace/9", 9, 9)))
    check(shot, root)
    assert shot.copied <= 2  # of the last round and after it


def test_a_name_of_several_is_captured_when_the_first_one_goes(
    root: Path, watch: StartWatch
) -> None:
    apply(
        os.fsencode(root),
        [
            ("write", b"workspace/a", 5000, 1),
            ("link", b"workspace/a", b"workspace/b"),
            ("link", b"workspace/a", b"venv/c"),
        ],
    )
    full = capture(root, last=doing(root, ("remove", b"venv/c")), watch=watch)
    check(full, root)
    shot = capture(root, full, last=doing(root, ("remove", b"workspace/a")), watch=watch)
    check(shot, root)


def test_a_path_longer_than_any_call_takes_is_captured(root: Path, watch: StartWatch) -> None:
    depth = 60
    fd = os.open(root / "workspace", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    with open(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
        file.write(b"deep")

    def more() -> None:
        with open(os.open("file", os.O_WRONLY | os.O_APPEND, dir_fd=fd), "ab") as file:
            file.write(b"er")

    try:
        shot = capture(root, last=more, watch=watch)
        check(shot, root)
        shot = capture(root, shot, watch=watch)
        check(shot, root)
    finally:
        os.close(fd)


def test_sockets_are_left_out_and_told(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        fd = os.open(root / "workspace", os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{fd}/socket")
        finally:
            os.close(fd)
        shot = capture(root)
    assert [entry.path for entry in shot.saved.manifest.entries] == [b"venv", b"workspace"]


def test_a_capture_that_is_stopped_ends_at_the_next_file(root: Path) -> None:
    apply(os.fsencode(root), [("write", b"workspace/%d" % n, 10, n) for n in range(50)])
    reached: list[int] = []
    with pytest.raises(Stopped):
        capture(root, during={2: Capture.stop, 3: lambda _: reached.append(3)})
    assert not reached


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_what_its_owner_closed_to_himself_is_captured_by_him() -> None:
    """As a worker that is no root, whose sessions have its own user."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        root = make_volume(Path(directory))
        apply(
            os.fsencode(root),
            [
                ("write", b"workspace/closed", 900, 1),
                ("write", b"workspace/d/in", 10, 2),
                ("chmod", b"workspace/closed", 0o200),
                ("chmod", b"workspace/d", 0),
            ],
        )
        for path in (root, *root.rglob("*")):
            os.chown(path, ORDINARY_UID, ORDINARY_UID)
        tree = tree_of(os.fsencode(root))
        os.seteuid(ORDINARY_UID)
        try:
            full = capture(root, look=lambda _: tree)
            shot = capture(root, full, rounds=[lambda: None], look=lambda _: tree)
        finally:
            os.seteuid(0)
        assert tree_of(os.fsencode(root)) == tree
        check(full, root)
        check(shot, root)


def backdate(root: Path) -> None:
    """Return when what was written lies more than a tick of the clock in the past."""
    newest = max(found.stat().st_ctime_ns for found in (root / "workspace").iterdir())
    while time.time_ns() < newest + 25_000_000:
        os.sched_yield()
