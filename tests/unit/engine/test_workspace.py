from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from codegen_mcp.core.errors import (
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PathEscape,
    WorkerError,
    WrongState,
)
from codegen_mcp.engine.workspace import SessionWorkspace
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.volumes.base import VolumeUsage

SIZES = [0, 1, 18 * 1024, 1024 * 1024, 1024 * 1024 + 1, 3 * 1024 * 1024]
IDENTITY = HostIdentity(uid=200_123, gid=200_123) if os.geteuid() == 0 else None


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[SessionWorkspace]:
    root = tmp_path / "workspace"
    root.mkdir()
    workspace = SessionWorkspace(root, IDENTITY)
    yield workspace
    await workspace.aclose()


@pytest.fixture(params=["openat2", "walk"])
def door(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as on a kernel that has no openat2."""
    if request.param == "walk":
        monkeypatch.setattr("codegen_mcp.sandbox.openat2.openat2_supported", lambda: False)


@pytest.fixture(params=["nameless", "hidden name"])
def drafts(request: pytest.FixtureRequest, workspace: SessionWorkspace) -> None:
    """Also as on a file system that has no O_TMPFILE."""
    workspace._held.nameless = request.param == "nameless"


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


async def put(workspace: SessionWorkspace, path: str | bytes, data: bytes = b"x") -> None:
    await workspace.write(path, data, create_dirs=True, mode=None)


async def paths(workspace: SessionWorkspace, path: str = ".", pattern: str = "") -> list[bytes]:
    entries, total = await workspace.list(path, recursive=True, pattern=pattern, limit=1000)
    assert total == len(entries)
    return [entry.path for entry in entries]


@pytest.mark.usefixtures("door", "drafts")
@pytest.mark.parametrize("size", SIZES)
async def test_what_is_written_is_read_with_its_length_and_hash(
    workspace: SessionWorkspace, size: int
) -> None:
    data = os.urandom(size)
    for _ in ("new", "over"):
        answer = await workspace.write("a/b", data, create_dirs=True, mode=None)
        assert answer == (size, hashlib.sha256(data).hexdigest())
        assert await workspace.read("a/b", 0, 64 * 1024 * 1024) == (data, size)
        assert await workspace.sha256("a/b") == answer
    assert tree(workspace.root) == ["a", "a/b"]


@pytest.mark.parametrize(
    ("offset", "length", "data"),
    [(0, 3, b"abc"), (2, 100, b"cdef"), (6, 1, b""), (100, 5, b""), (3, 0, b"")],
)
async def test_a_range_is_what_lies_in_it(
    workspace: SessionWorkspace, offset: int, length: int, data: bytes
) -> None:
    await put(workspace, "f", b"abcdef")
    assert await workspace.read("f", offset, length) == (data, 6)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1)])
async def test_a_negative_range_is_refused(
    workspace: SessionWorkspace, offset: int, length: int
) -> None:
    await put(workspace, "f")
    with pytest.raises(InvalidRequest, match="negative"):
        await workspace.read("f", offset, length)


async def test_a_huge_sparse_file_is_read_by_ranges_only(workspace: SessionWorkspace) -> None:
    with open(workspace.root / "sparse", "wb") as file:
        file.truncate(1 << 42)
    assert await workspace.read("sparse", 1 << 41, 10) == (b"\0" * 10, 1 << 42)
    with pytest.raises(LimitExceeded, match="stream"):
        await workspace.read("sparse", 0, 1 << 40)


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [(None, None, 0o644), (None, 0o751, 0o751), (0o600, 0o751, 0o600), (0o777, None, 0o777)],
)
async def test_the_mode_is_the_given_the_old_or_0644(
    workspace: SessionWorkspace, mode: int | None, before: int | None, after: int
) -> None:
    if before is not None:
        (workspace.root / "f").touch()
        (workspace.root / "f").chmod(before)
    await workspace.write("f", b"", create_dirs=False, mode=mode)
    assert (await workspace.stat("f")).mode == after


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0o10000, -1])
async def test_more_than_permission_bits_is_refused(workspace: SessionWorkspace, mode: int) -> None:
    with pytest.raises(InvalidRequest, match="setuid"):
        await workspace.write("f", b"", create_dirs=False, mode=mode)
    assert tree(workspace.root) == []


async def test_setuid_of_an_old_file_does_not_pass_to_the_new_one(
    workspace: SessionWorkspace,
) -> None:
    (workspace.root / "f").touch()
    (workspace.root / "f").chmod(0o6755)
    await put(workspace, "f")
    assert (await workspace.stat("f")).mode == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")
async def test_everything_that_is_made_belongs_to_the_session(workspace: SessionWorkspace) -> None:
    await put(workspace, "made/for/this")
    await workspace.make_dir("dir/below")
    for path in workspace.root.rglob("*"):
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == (200_123, 200_123)
        assert stat.S_IMODE(found.st_mode) == (0o755 if path.is_dir() else 0o644)


@pytest.mark.usefixtures("door")
async def test_a_missing_directory_is_made_only_when_asked(workspace: SessionWorkspace) -> None:
    with pytest.raises(NotFound):
        await workspace.write("a/b/c", b"", create_dirs=False, mode=None)
    assert tree(workspace.root) == []
    await workspace.write("a/b/c", b"", create_dirs=True, mode=None)
    assert tree(workspace.root) == ["a", "a/b", "a/b/c"]


async def test_a_link_inside_is_written_through(workspace: SessionWorkspace) -> None:
    await put(workspace, "a/real", b"old")
    (workspace.root / "a/link").symlink_to("../a/./real")
    (workspace.root / "chain").symlink_to("a/link")
    (workspace.root / "new").symlink_to("a/made")
    (workspace.root / "dir").symlink_to("a")
    await put(workspace, "chain", b"1")
    await put(workspace, "new", b"2")
    await put(workspace, "dir/third", b"3")
    assert (workspace.root / "a/real").read_bytes() == b"1"
    assert (workspace.root / "a/made").read_bytes() == b"2"
    assert (workspace.root / "a/third").read_bytes() == b"3"
    assert (workspace.root / "chain").is_symlink()


async def test_a_link_to_a_directory_is_not_overwritten(workspace: SessionWorkspace) -> None:
    await workspace.make_dir("d")
    for name, target in (("one", "d"), ("two", "d/"), ("three", "d/.."), ("four", ".")):
        (workspace.root / name).symlink_to(target)
        with pytest.raises(WrongState):
            await put(workspace, name)


async def test_a_directory_is_not_overwritten_by_a_file(workspace: SessionWorkspace) -> None:
    await workspace.make_dir("d")
    with pytest.raises(WrongState, match="directory"):
        await put(workspace, "d")
    with pytest.raises(WrongState, match="directory"):
        await workspace.read("d", 0, 1)


async def test_a_file_on_the_way_is_said_to_be_no_directory(workspace: SessionWorkspace) -> None:
    await put(workspace, "f")
    for call in (
        workspace.read("f/x", 0, 1),
        workspace.write("f/x", b"", create_dirs=True, mode=None),
        workspace.make_dir("f/x"),
        workspace.make_dir("f"),
        workspace.list("f", recursive=False, pattern="", limit=1),
    ):
        with pytest.raises(WrongState, match="not a directory"):
            await call
    assert tree(workspace.root) == ["f"]


async def test_overwriting_one_hard_link_leaves_the_other(workspace: SessionWorkspace) -> None:
    await put(workspace, "a", b"old")
    os.link(workspace.root / "a", workspace.root / "b")
    await put(workspace, "a", b"new")
    assert (workspace.root / "b").read_bytes() == b"old"


async def test_a_file_longer_than_allowed_is_refused_and_leaves_nothing(
    workspace: SessionWorkspace,
) -> None:
    workspace.limit_files(10)
    await put(workspace, "ok", b"x" * 10)
    with pytest.raises(LimitExceeded, match="10 bytes"):
        await put(workspace, "made/for/nothing", b"x" * 11)
    assert tree(workspace.root) == ["ok"]


async def test_a_volume_that_only_the_worker_watches_is_not_overrun(tmp_path: Path) -> None:
    used = 90
    workspace = SessionWorkspace(
        tmp_path, None, usage=lambda: VolumeUsage(used_bytes=used, size_bytes=100, full=False)
    )
    await put(workspace, "f", b"x" * 10)
    with pytest.raises(LimitExceeded, match="larger disk limit"):
        await put(workspace, "g", b"x" * 11)
    assert tree(tmp_path) == ["f"]
    await workspace.aclose()


async def test_a_listing_is_sorted_by_path_bytes_and_shows_links(
    workspace: SessionWorkspace,
) -> None:
    for name in ("b/x", "a-b", "a/y", "Z"):
        await put(workspace, name)
    (workspace.root / "out").symlink_to("/etc")
    (workspace.root / "loop").symlink_to("loop")
    (workspace.root / "dangling").symlink_to("no/where")
    entries, total = await workspace.list(".", recursive=True, pattern="", limit=100)
    assert [entry.path for entry in entries] == sorted(entry.path for entry in entries)
    assert total == 9
    links = {entry.path: entry.link_target for entry in entries if entry.kind == "symlink"}
    assert links == {b"out": b"/etc", b"loop": b"loop", b"dangling": b"no/where"}


async def test_a_listing_gives_the_first_and_counts_all(workspace: SessionWorkspace) -> None:
    for number in range(30):
        await put(workspace, f"d{number % 3}/{number:02}")
    entries, total = await workspace.list(".", recursive=True, pattern="", limit=4)
    assert [entry.path for entry in entries] == [b"d0", b"d0/00", b"d0/03", b"d0/06"]
    assert total == 33
    assert await workspace.list(".", recursive=True, pattern="", limit=0) == ([], 33)


async def test_a_pattern_is_held_against_names_or_paths(workspace: SessionWorkspace) -> None:
    for name in ("a.py", "s/b.py", "s/t/c.py", "s/t/c.txt"):
        await put(workspace, name)
    assert await paths(workspace, pattern="*.py") == [b"a.py", b"s/b.py", b"s/t/c.py"]
    assert await paths(workspace, pattern="s/*") == [b"s/b.py", b"s/t"]
    assert await paths(workspace, "s", pattern="t/*") == [b"s/t/c.py", b"s/t/c.txt"]
    assert await paths(workspace, "s", pattern="**/*.py") == [b"s/b.py", b"s/t/c.py"]


async def test_a_directory_is_listed_through_a_link_that_stays_inside(
    workspace: SessionWorkspace,
) -> None:
    await put(workspace, "d/f")
    (workspace.root / "link").symlink_to("d")
    assert await paths(workspace, "link") == [b"link/f"]
    assert await paths(workspace) == [b"d", b"d/f", b"link"]


async def test_names_of_any_bytes_are_kept(workspace: SessionWorkspace) -> None:
    names = [
        b"\xff\xfe",
        b"new\nline",
        "\N{PARTY POPPER}".encode(),
        "e\N{COMBINING ACUTE ACCENT}".encode(),
        "\N{LATIN SMALL LETTER E WITH ACUTE}".encode(),
        b"x" * 255,
        b"\\xff",
        b"-rf",
        b" ",
    ]
    for name in names:
        await put(workspace, name, name)
    entries, _ = await workspace.list(".", recursive=False, pattern="", limit=100)
    assert [entry.path for entry in entries] == sorted(names)
    for name in names:
        assert (await workspace.read(name, 0, 1000))[0] == name
    assert {entry.text for entry in entries} >= {"\\xff\\xfe", "new\nline"}


async def test_a_large_directory_is_listed_in_a_thread_while_the_loop_runs(
    workspace: SessionWorkspace,
) -> None:
    for number in range(4000):
        os.close(os.open(workspace.root / f"{number:05}", os.O_CREAT))
    listing = asyncio.ensure_future(workspace.list(".", recursive=True, pattern="*7", limit=3))
    await asyncio.sleep(0)
    assert not listing.done()
    entries, total = await listing
    assert [entry.path for entry in entries] == [b"00007", b"00017", b"00027"]
    assert total == 400


async def test_stat_does_not_follow(workspace: SessionWorkspace) -> None:
    await put(workspace, "f", b"12345")
    (workspace.root / "link").symlink_to("f")
    os.mkfifo(workspace.root / "fifo")
    found = await workspace.stat("f")
    assert (found.kind, found.size, found.path) == ("file", 5, b"f")
    assert found.mtime_ns == (workspace.root / "f").stat().st_mtime_ns
    assert (await workspace.stat("link")).link_target == b"f"
    assert (await workspace.stat("fifo")).kind == "fifo"
    assert (await workspace.stat(".")).kind == "directory"
    with pytest.raises(NotFound):
        await workspace.stat("nothing")


async def test_delete_counts_what_went(workspace: SessionWorkspace) -> None:
    await put(workspace, "d/e/f")
    await put(workspace, "d/g")
    (workspace.root / "d/link").symlink_to("g")
    await put(workspace, "keep")
    with pytest.raises(WrongState, match="recursive"):
        await workspace.delete("d", recursive=False)
    assert await workspace.delete("d/link", recursive=True) == 1
    assert (workspace.root / "d/g").exists()
    assert await workspace.delete("d", recursive=True) == 4
    assert await workspace.delete("keep", recursive=False) == 1
    assert tree(workspace.root) == []
    with pytest.raises(NotFound):
        await workspace.delete("keep", recursive=True)


async def test_an_empty_directory_needs_no_recursion(workspace: SessionWorkspace) -> None:
    await workspace.make_dir("d")
    assert await workspace.delete("d", recursive=False) == 1


@pytest.mark.parametrize("path", [".", "a/..", "./"])
async def test_the_workspace_itself_is_not_deleted_or_moved(
    workspace: SessionWorkspace, path: str
) -> None:
    with pytest.raises(InvalidRequest):
        await workspace.delete(path, recursive=True)
    with pytest.raises(InvalidRequest):
        await workspace.move(path, "x", overwrite=True)


async def test_directories_without_permissions_are_deleted(workspace: SessionWorkspace) -> None:
    await put(workspace, "locked/deep/file")
    (workspace.root / "locked/deep").chmod(0o500)
    (workspace.root / "locked").chmod(0)
    assert await workspace.delete("locked", recursive=True) == 3


async def test_move_renames_and_refuses_to_overwrite_unasked(workspace: SessionWorkspace) -> None:
    await put(workspace, "a", b"a")
    await put(workspace, "d/b", b"b")
    with pytest.raises(WrongState, match="overwrite"):
        await workspace.move("a", "d/b", overwrite=False)
    await workspace.move("a", "d/b", overwrite=True)
    assert (workspace.root / "d/b").read_bytes() == b"a"
    await workspace.move("d", "e", overwrite=False)
    assert tree(workspace.root) == ["e", "e/b"]


async def test_move_says_what_is_missing_or_in_the_way(workspace: SessionWorkspace) -> None:
    await put(workspace, "d/f")
    await put(workspace, "g")
    with pytest.raises(NotFound, match="'nothing'"):
        await workspace.move("nothing", "x", overwrite=False)
    with pytest.raises(NotFound, match="'no/x'"):
        await workspace.move("g", "no/x", overwrite=False)
    with pytest.raises(InvalidRequest, match="itself"):
        await workspace.move("d", "d/e", overwrite=False)
    with pytest.raises(WrongState):
        await workspace.move("g", "d", overwrite=True)
    assert tree(workspace.root) == ["d", "d/f", "g"]


async def test_move_takes_a_link_itself_and_never_leaves_two_names(
    workspace: SessionWorkspace,
) -> None:
    await put(workspace, "a")
    os.link(workspace.root / "a", workspace.root / "b")
    (workspace.root / "link").symlink_to("/etc/passwd")
    await workspace.move("link", "moved", overwrite=False)
    assert os.readlink(workspace.root / "moved") == "/etc/passwd"
    await workspace.move("a", "b", overwrite=True)
    assert tree(workspace.root) == ["b", "moved"]
    await workspace.move("b", "b", overwrite=True)
    assert (workspace.root / "b").exists()


async def test_make_dir_makes_parents_and_is_idempotent(workspace: SessionWorkspace) -> None:
    await workspace.make_dir("a/b/c")
    await workspace.make_dir("a/b/c")
    await workspace.make_dir(".")
    assert tree(workspace.root) == ["a", "a/b", "a/b/c"]
    (workspace.root / "dangling").symlink_to("nowhere")
    with pytest.raises(WorkerError):
        await workspace.make_dir("dangling/x")


async def test_the_workspace_follows_a_rename_of_its_parents(tmp_path: Path) -> None:
    (tmp_path / "slot/workspace").mkdir(parents=True)
    workspace = SessionWorkspace(tmp_path / "slot/workspace", None)
    (tmp_path / "slot").rename(tmp_path / "session")
    workspace.moved(tmp_path / "session/workspace")
    await put(workspace, "f")
    assert workspace.root == tmp_path / "session/workspace"
    assert tree(tmp_path) == ["session", "session/workspace", "session/workspace/f"]
    await workspace.aclose()


async def test_the_root_must_be_a_directory_and_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError):
        SessionWorkspace(tmp_path / "link", None)


@pytest.mark.usefixtures("door")
async def test_links_that_lead_out_are_refused_whatever_is_asked(
    workspace: SessionWorkspace, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/f").write_text("secret")
    (workspace.root / "dir").symlink_to("../secret")
    (workspace.root / "file").symlink_to(tmp_path / "secret/f")
    for call in (
        workspace.read("file", 0, 10),
        workspace.read("dir/f", 0, 10),
        workspace.sha256("dir/f"),
        workspace.stat("dir/f"),
        workspace.list("dir", recursive=False, pattern="", limit=10),
        workspace.delete("dir/f", recursive=False),
        workspace.delete("dir/f", recursive=True),
        workspace.move("dir/f", "got", overwrite=True),
        workspace.make_dir("dir/made"),
        workspace.write("file", b"", create_dirs=False, mode=None),
        workspace.write("dir/g", b"", create_dirs=True, mode=None),
        workspace.write("dir/h/i", b"", create_dirs=True, mode=None),
    ):
        with pytest.raises(PathEscape):
            await call
    await put(workspace, "mine")
    with pytest.raises(PathEscape):
        await workspace.move("mine", "dir/mine", overwrite=True)
    assert tree(tmp_path / "secret") == ["f"]
    assert (tmp_path / "secret/f").read_text() == "secret"
