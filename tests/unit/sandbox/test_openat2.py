from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codegen_mcp.sandbox.openat2 import (
    DIRECTORY,
    NO_LINKS,
    open_beneath,
    open_by_walking,
    openat2_supported,
    rename_at,
)

Open = Callable[[int, bytes, int], int]
READ = os.O_RDONLY


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    base = tmp_path / "root"
    (base / "d/e").mkdir(parents=True)
    (base / "d/e/f").write_text("inside")
    (tmp_path / "outside").write_text("outside")
    (base / "inside_link").symlink_to("d/e/f")
    (base / "dir_link").symlink_to("d")
    (base / "d/up_and_back").symlink_to("../d/e/f")
    (base / "absolute").symlink_to(tmp_path / "outside")
    (base / "relative").symlink_to("../outside")
    (base / "loop").symlink_to("loop")
    (base / "magic").symlink_to("/proc/self/root/etc/passwd")
    fd = os.open(base, DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def opened(open_it: Open, root: int, path: bytes, flags: int = READ) -> bytes | int:
    """What was read, or the errno."""
    try:
        fd = open_it(root, path, flags)
    except OSError as error:
        return error.errno or 0
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


walk: Open = open_by_walking
both = pytest.mark.parametrize("open_it", [open_beneath, walk], ids=["openat2", "walk"])


def test_this_kernel_has_openat2() -> None:
    assert openat2_supported()


@both
def test_a_plain_path_is_opened(open_it: Open, root: int) -> None:
    assert opened(open_it, root, b"d/e/f") == b"inside"


@both
def test_descriptors_are_closed_on_exec_and_never_block(open_it: Open, root: int) -> None:
    fd = open_it(root, b"d/e/f", READ)
    try:
        assert not os.get_inheritable(fd)
        assert not os.get_blocking(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"inside_link", b"dir_link/e/f", b"d/up_and_back"])
def test_links_that_stay_inside_are_followed_by_openat2_and_refused_by_the_walk(
    root: int, path: bytes
) -> None:
    assert opened(open_beneath, root, path) == b"inside"
    assert opened(open_by_walking, root, path) == errno.ELOOP


@pytest.mark.parametrize("path", [b"absolute", b"relative", b"../outside", b"d/../../outside"])
def test_what_leads_out_is_refused_by_openat2(root: int, path: bytes) -> None:
    assert opened(open_beneath, root, path) == errno.EXDEV


@pytest.mark.parametrize("path", [b"absolute", b"relative", b"loop", b"magic", b"dir_link/e"])
def test_every_link_is_refused_by_the_walk(root: int, path: bytes) -> None:
    assert opened(open_by_walking, root, path) == errno.ELOOP
    assert opened(open_by_walking, root, path, os.O_PATH) == errno.ELOOP
    assert opened(open_by_walking, root, path, DIRECTORY) == errno.ELOOP


@pytest.mark.parametrize("path", [b"../outside", b"/etc/passwd", b"d/../d/e/f"])
def test_dots_and_absolute_paths_are_refused_by_the_walk(root: int, path: bytes) -> None:
    assert opened(open_by_walking, root, path) == errno.EXDEV


@both
def test_a_link_itself_can_be_held(open_it: Open, root: int) -> None:
    fd = open_it(root, b"absolute", os.O_PATH | os.O_NOFOLLOW)
    try:
        assert os.readlink(b"", dir_fd=fd).endswith(b"/outside")
    finally:
        os.close(fd)


@both
def test_the_directory_itself_is_a_dot(open_it: Open, root: int) -> None:
    fd = open_it(root, b".", READ | os.O_DIRECTORY)
    try:
        assert "d" in os.listdir(fd)
    finally:
        os.close(fd)


@both
@pytest.mark.parametrize(
    ("path", "code"),
    [(b"nothing", errno.ENOENT), (b"nothing/x", errno.ENOENT), (b"d/e/f/g", errno.ENOTDIR)],
)
def test_what_is_missing_says_so(open_it: Open, root: int, path: bytes, code: int) -> None:
    assert opened(open_it, root, path) == code


def test_a_walk_over_a_tree_refuses_links_and_mounts(root: int) -> None:
    with pytest.raises(OSError, match="symbolic links") as caught:
        open_beneath(root, b"dir_link/e", READ, resolve=NO_LINKS)
    assert caught.value.errno == errno.ELOOP
    slash = os.open("/", DIRECTORY)
    try:
        with pytest.raises(OSError, match="cross-device") as caught:
            open_beneath(slash, b"proc/self", READ, resolve=NO_LINKS)
        assert caught.value.errno == errno.EXDEV
    finally:
        os.close(slash)


@both
def test_a_nul_never_reaches_the_kernel(open_it: Open, root: int) -> None:
    with pytest.raises(ValueError, match="NUL"):
        open_it(root, b"d\0/../..", READ)


def test_rename_without_replace_leaves_what_is_there(root: int) -> None:
    with pytest.raises(FileExistsError):
        rename_at(root, b"d", root, b"loop", replace=False)
    rename_at(root, b"d", root, b"new", replace=False)
    assert opened(open_beneath, root, b"new/e/f") == b"inside"


def test_rename_with_replace_puts_one_in_the_place_of_the_other(root: int) -> None:
    rename_at(root, b"loop", root, b"absolute", replace=True)
    assert os.readlink(b"absolute", dir_fd=root) == b"loop"


def test_rename_without_the_flag_is_as_careful(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codegen_mcp.sandbox.openat2._RENAMEAT2", None)
    with pytest.raises(FileExistsError):
        rename_at(root, b"d", root, b"loop", replace=False)
    with pytest.raises(FileExistsError):
        rename_at(root, b"absolute", root, b"loop", replace=False)
    rename_at(root, b"absolute", root, b"moved", replace=False)
    rename_at(root, b"d", root, b"new", replace=False)
    names = set(os.listdir(f"/proc/self/fd/{root}"))
    assert {"moved", "new"} <= names
    assert not {"absolute", "d"} & names
