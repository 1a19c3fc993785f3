"""A tree that differs from its manifest in anything is found, and an equal one is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.core.errors import Corrupt
from codegen_mcp.engine.checkpoints.scan import Seen
from codegen_mcp.engine.checkpoints.tree_compare import check_volume, first_difference
from codegen_mcp.testing.archive_rig import directory, fifo, file, hardlink, symlink
from codegen_mcp.testing.refill_rig import make_volume

TREE = [
    directory(b"workspace"),
    directory(b"venv"),
    directory(b"workspace/d", 0o2755),
    file(b"workspace/d/f", b"content"),
    hardlink(b"workspace/d/g", b"workspace/d/f"),
    file(b"workspace/h", b"content"),
    hardlink(b"venv/h", b"workspace/h"),
    symlink(b"workspace/l", b"target"),
    fifo(b"workspace/p"),
]


def as_seen(entries: list[Entry]) -> dict[bytes, Seen]:
    """What a walk of that tree would find."""
    files = {one.path: one for one in entries}
    found = {}
    for number, entry in enumerate(entries):
        first = files[entry.target] if entry.kind is EntryKind.HARDLINK else entry
        names = sum(one.target == first.path for one in entries if one.kind is EntryKind.HARDLINK)
        is_directory = entry.kind is EntryKind.DIRECTORY
        is_link = entry.kind is EntryKind.SYMLINK
        found[entry.path] = Seen(
            path=entry.path,
            kind=entry.kind,
            mode=entry.mode,
            mtime_ns=entry.mtime_ns,
            ctime_ns=number,
            size=4096 if is_directory else len(entry.target) if is_link else first.size,
            ino=1000 + entries.index(first),
            nlink=2 if is_directory else 1 + names,
            blocks=0,
            target=entry.target,
        )
    return found


def test_an_equal_tree_has_no_difference_in_any_order() -> None:
    found = as_seen(TREE)
    assert first_difference(TREE, found.values()) == ""
    assert first_difference(reversed(TREE), reversed(found.values())) == ""


def test_which_name_of_a_file_was_seen_first_does_not_matter() -> None:
    found = as_seen(TREE)
    f, g = found[b"workspace/d/f"], found[b"workspace/d/g"]
    found[f.path] = f._replace(kind=EntryKind.HARDLINK, target=g.path)
    found[g.path] = g._replace(kind=EntryKind.FILE, target=b"")
    assert first_difference(TREE, found.values()) == ""


Change = Callable[[Seen], Seen]
CHANGES: list[tuple[bytes, Change, str]] = [
    (b"workspace", lambda one: one._replace(mode=0o700), "mode 0700"),
    (b"workspace/d", lambda one: one._replace(mode=0o755), "mode 0755, not 2755"),
    (b"workspace/d/f", lambda one: one._replace(mtime_ns=one.mtime_ns + 1), "mtime_ns"),
    (b"workspace/d/f", lambda one: one._replace(size=6), "6 bytes, not 7"),
    (b"workspace/d/g", lambda one: one._replace(ino=5), "not the same file"),
    (b"workspace/h", lambda one: one._replace(nlink=3), "3 names, not 2"),
    (b"workspace/d/f", lambda one: one._replace(kind=EntryKind.SYMLINK), "is a symlink"),
    (b"workspace/d", lambda one: one._replace(kind=EntryKind.FILE), "is a file"),
    (b"workspace/l", lambda one: one._replace(target=b"other"), "leads to b'other'"),
    (b"workspace/l", lambda one: one._replace(mtime_ns=0), "mtime_ns 0"),
    (b"workspace/p", lambda one: one._replace(kind=None), "special file"),
    (b"workspace/p", lambda one: one._replace(path=b"workspace/q"), "'workspace/p' is missing"),
    (b"venv", lambda one: one._replace(path=b"workspace"), "twice"),
]


@pytest.mark.parametrize(("path", "change", "words"), CHANGES, ids=[one[2] for one in CHANGES])
def test_one_change_is_named(path: bytes, change: Change, words: str) -> None:
    found = as_seen(TREE)
    found[path] = change(found[path])
    assert words in first_difference(TREE, found.values())


def test_something_more_is_named() -> None:
    found = [*as_seen(TREE).values(), *as_seen([symlink(b"venv/more", b"x")]).values()]
    assert first_difference(TREE, found) == "'venv/more' should not be there"


def test_two_files_that_became_one_are_named() -> None:
    found = as_seen(TREE)
    for path in (b"workspace/h", b"venv/h"):
        found[path] = found[path]._replace(ino=found[b"workspace/d/f"].ino)
    assert "is the same file as" in first_difference(TREE, found.values())


def test_a_real_tree_that_differs_is_corrupt(tmp_path: Path) -> None:
    root = make_volume(tmp_path / "volume")
    with pytest.raises(Corrupt, match="'workspace' has m"):
        check_volume(root, TREE[:2])


NAMES = st.binary(min_size=1, max_size=6).filter(lambda name: not set(name) & set(b"/\0"))
KINDS = st.sampled_from([file, symlink, directory, fifo])


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """Roots, names in them, and hard links among these."""
    entries = TREE[:2]
    for name in draw(st.lists(NAMES, max_size=8, unique=True)):
        path = draw(st.sampled_from([b"workspace/", b"venv/"])) + name
        make = draw(KINDS)
        entries.append(make(path, name) if make in (file, symlink) else make(path))  # type: ignore[operator]
    files = [one.path for one in entries if one.kind is EntryKind.FILE]
    if files:
        for number in range(draw(st.integers(0, 4))):
            target = draw(st.sampled_from(files))
            entries.append(hardlink(b"venv/a hard link %d" % number, target))
    return entries


@given(trees(), st.data())
def test_any_tree_equals_itself_and_no_other(entries: list[Entry], data: st.DataObject) -> None:
    found = as_seen(entries)
    shuffled = data.draw(st.permutations(list(found.values())))
    assert first_difference(entries, shuffled) == ""
    at = data.draw(st.integers(0, len(entries) - 1))
    one = entries[at]
    fields = {
        "mode": one.mode ^ data.draw(st.integers(1, 0o7777)),
        "mtime_ns": one.mtime_ns + data.draw(st.sampled_from([-1, 1, 10**9])),
        "path": one.path + b"'",
    }
    field = data.draw(st.sampled_from(sorted(fields)))
    other = [*entries]
    other[at] = replace(one, **{field: fields[field]})  # type: ignore[arg-type]
    assume(len({entry.path for entry in other}) == len(other))
    assert first_difference(other, found.values()) != ""


@given(trees(), st.data())
def test_regrouped_hard_links_are_found(entries: list[Entry], data: st.DataObject) -> None:
    entries += [
        file(b"venv/a file", b"a"),
        file(b"venv/another", b"b"),
        hardlink(b"venv/its link", b"venv/a file"),
    ]
    files = [one.path for one in entries if one.kind is EntryKind.FILE]
    links = [one for one in entries if one.kind is EntryKind.HARDLINK]
    link = data.draw(st.sampled_from(links))
    target = data.draw(st.sampled_from([path for path in files if path != link.target]))
    other = [replace(one, target=target) if one is link else one for one in entries]
    assert first_difference(other, as_seen(entries).values()) != ""
