"""What is known of a tree follows what is touched, name by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.checkpoint import EntryKind
from codegen_mcp.engine.checkpoints.scan import Seen
from codegen_mcp.engine.checkpoints.tree_table import TreeTable, order, walk


class Tree:
    """A real tree, and what a table knows of it."""

    def __init__(self, root: Path) -> None:
        self.path = root / "workspace"
        self.path.mkdir()
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.table = TreeTable()

    def file(self, name: str, text: str = "") -> None:
        (self.path / name).write_text(text)

    def link(self, old: str, new: str) -> None:
        os.link(self.path / old, self.path / new, follow_symlinks=False)

    def look(self) -> None:
        for seen in walk(self.fd, b"workspace"):
            self.table.add(seen)

    def touched(self, *names: str, trees: tuple[str, ...] = ()) -> set[str]:
        """Refresh; names of the files that were looked at."""
        paths = {self.named(name) for name in (*names, *trees)}
        found = self.table.refresh(self.fd, paths, {self.named(name) for name in trees})
        return {os.fsdecode(path).removeprefix("workspace/") for path in found}

    @staticmethod
    def named(name: str) -> bytes:
        return os.fsencode(f"workspace/{name}" if name else "workspace")

    def check(self) -> None:
        """The table, once it is pruned, is what a walk of its own finds."""
        self.table.prune()
        fresh = TreeTable()
        for seen in walk(self.fd, b"workspace"):
            fresh.add(seen)
        assert facts(self.table) == facts(fresh)


def facts(table: TreeTable) -> list[tuple[object, ...]]:
    """What a manifest would have of it."""
    return [
        (path, seen.kind, seen.mode, seen.mtime_ns, seen.ino, seen.target, first)
        for path, seen, first in table.ordered()
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    yield made
    os.close(made.fd)


def test_a_directory_sorts_directly_before_what_is_in_it() -> None:
    names = [b"a", b"a/b", b"a/b/c", b"a b", b"a-b", b"a.b", b"b"]
    assert sorted({*names}, key=order) == names


def test_only_what_was_touched_is_looked_at(tree: Tree) -> None:
    tree.file("a")
    tree.file("b")
    tree.look()
    tree.file("a", "more")
    tree.file("b", "more")
    assert tree.touched("a") == {"a"}
    assert [seen.size for path, seen, _ in tree.table.ordered() if path.endswith((b"a", b"b"))] == [
        4,
        0,
    ]


def test_what_lies_in_a_new_directory_is_found_through_its_name(tree: Tree) -> None:
    tree.look()
    (tree.path / "d/e").mkdir(parents=True)
    tree.file("d/e/f")
    assert tree.touched("", trees=("d",)) == {"d/e/f"}
    tree.check()


def test_what_lay_in_a_directory_that_is_gone_does_not_come_back_with_its_name(tree: Tree) -> None:
    (tree.path / "d").mkdir()
    tree.file("d/old")
    tree.look()
    (tree.path / "d").rename(tree.path / "e")
    tree.touched("", trees=("d", "e"))
    tree.table.prune()
    (tree.path / "d").mkdir()
    tree.touched("", trees=("d",))
    tree.check()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_name_may_change_its_kind(tree: Tree, kind: str) -> None:
    tree.file("a")
    (tree.path / "d").mkdir()
    tree.file("d/in")
    tree.look()
    os.rename(tree.path / "a", tree.path / "keep")
    if kind == "file":
        os.rename(tree.path / "d/in", tree.path / "a")
        (tree.path / "d").rmdir()
        tree.file("d")
    else:
        os.rename(tree.path / "d", tree.path / "a")
        tree.file("d")
    tree.touched("", "a", "d", "keep", trees=("a", "d"))
    tree.check()


def test_a_new_name_of_a_file_that_had_one_makes_a_group(tree: Tree) -> None:
    """Where nothing is told of the old name."""
    tree.file("b")
    tree.look()
    assert tree.table.groups() == {}
    tree.link("b", "a")
    assert tree.touched("", "a") == {"a", "b"}
    assert tree.table.groups() == {b"workspace/b": b"workspace/a"}
    tree.check()


@pytest.mark.parametrize("kind", [EntryKind.FILE, EntryKind.SYMLINK, EntryKind.FIFO])
def test_what_is_done_by_one_name_is_seen_at_all(tree: Tree, kind: EntryKind) -> None:
    if kind is EntryKind.FILE:
        tree.file("a")
    elif kind is EntryKind.SYMLINK:
        os.symlink("nowhere", tree.path / "a")
    else:
        os.mkfifo(tree.path / "a")
    tree.link("a", "b")
    tree.look()
    os.utime(tree.path / "b", (7, 7), follow_symlinks=False)
    tree.touched("b")
    assert {seen.mtime_ns for path, seen, _ in tree.table.ordered() if path != b"workspace"} == {
        7 * 10**9
    }
    tree.check()


def test_the_last_name_of_several_is_no_link(tree: Tree) -> None:
    tree.file("a")
    tree.link("a", "b")
    tree.look()
    os.unlink(tree.path / "a")
    tree.touched("", "a")
    assert [(path, target) for path, _, target in tree.table.ordered()][1:] == [
        (b"workspace/b", None)
    ]
    tree.check()


def test_names_are_found_by_inode(tree: Tree) -> None:
    tree.file("a")
    tree.link("a", "b")
    tree.file("c")
    tree.look()
    one, other = ((tree.path / name).stat().st_ino for name in "ac")
    assert tree.table.paths_of({one}) == {b"workspace/a", b"workspace/b"}
    assert tree.table.paths_of({other, 1 << 60}) == {b"workspace/c"}


def test_a_name_that_is_gone_when_it_is_looked_at_is_forgotten(tree: Tree) -> None:
    tree.file("a")
    (tree.path / "d").mkdir()
    tree.file("d/b")
    tree.look()
    os.unlink(tree.path / "a")
    os.unlink(tree.path / "d/b")
    (tree.path / "d").rmdir()
    assert tree.touched("", "a", "d/b", "d", "never", "d/never") == set()
    tree.check()


def test_sockets_and_devices_are_named_apart() -> None:
    table = TreeTable()
    table.add(Seen(b"workspace/s", None, 0o644, 0, 0, 0, 1, 1, 0, b""))
    assert table.skipped == [b"workspace/s"]
    assert list(table.ordered()) == []
