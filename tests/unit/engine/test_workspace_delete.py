"""Deleting while somebody rearranges the tree, at exactly the worst moments."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.paths import parse_path
from codegen_mcp.engine.workspace_delete import delete_tree
from codegen_mcp.engine.workspace_threads import Stop
from codegen_mcp.engine.workspace_tree import Tree
from codegen_mcp.sandbox.openat2 import DIRECTORY

Meddle = Callable[[Path], None]


class At(Stop):
    """Does something at one step of the work."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        super().__init__()
        self._step = step
        self._act = act

    def check(self) -> None:
        """Count down."""
        self._step -= 1
        if self._step == 0:
            self._act()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """``top/a/b/file`` to be deleted, ``keep`` and a secret outside to be kept."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    root = tmp_path / "workspace"
    (root / "top/a/b").mkdir(parents=True)
    (root / "top/a/b/file").touch()
    (root / "keep").mkdir()
    return root


@pytest.fixture
def tree(root: Path) -> Iterator[Tree]:
    fd = os.open(root, DIRECTORY)
    yield Tree(fd, None)
    os.close(fd)


def exchange_for_link(root: Path) -> None:
    (root / "top/a/b").rename(root / "keep/b")
    (root / "top/a/b").symlink_to(root.parent / "outside")


def exchange_for_file(root: Path) -> None:
    (root / "top/a/b").rename(root / "keep/b")
    (root / "top/a/b").touch()


def exchange_for_directory(root: Path) -> None:
    (root / "top/a/b").rename(root / "keep/b")
    (root / "top/a/b").mkdir()
    (root / "top/a/b/other").touch()


def move_away(root: Path) -> None:
    (root / "top/a/b").rename(root / "keep/b")


def add_file(root: Path) -> None:
    (root / "top/a/b/late").touch()


def remove_file(root: Path) -> None:
    (root / "top/a/b/file").unlink()


def file_becomes_directory(root: Path) -> None:
    (root / "top/a/b/file").unlink()
    (root / "top/a/b/file").mkdir()


@pytest.mark.parametrize("step", range(1, 9))
@pytest.mark.parametrize(
    "meddle",
    [
        exchange_for_link,
        exchange_for_file,
        exchange_for_directory,
        move_away,
        add_file,
        remove_file,
        file_becomes_directory,
    ],
)
def test_whatever_is_swapped_at_any_step_only_the_tree_goes(
    root: Path, tree: Tree, meddle: Meddle, step: int
) -> None:
    def act() -> None:
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # late steps find it gone
            meddle(root)

    before = len(os.listdir("/proc/self/fd"))
    ended = ""
    try:
        delete_tree(tree, parse_path("top"), At(step, act))
    except WrongState as error:
        ended = error.message
    if ended:
        assert "being written to" in ended
    else:
        assert not (root / "top").exists()
    assert (root / "keep").is_dir()
    assert os.listdir(root.parent / "outside") == ["secret"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_whose_name_was_taken_ends_in_an_error_not_in_a_loop(
    root: Path, tree: Tree
) -> None:
    def act() -> None:
        (root / "top").rename(root / "keep/top")
        (root / "top").mkdir()
        (root / "top/foreign").touch()

    with pytest.raises(WrongState, match="being written to"):
        delete_tree(tree, parse_path("top"), At(2, act))
    assert (root / "top/foreign").exists()


UNREADABLE = """
import os, sys
from codegen_mcp.core.paths import parse_path
from codegen_mcp.engine.workspace_delete import delete_tree
from codegen_mcp.engine.workspace_threads import Stop
from codegen_mcp.engine.workspace_tree import Tree
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
path = "top"
for depth in range(60):
    os.mkdir(path)
    open(path + "/file", "w").close()
    path += "/d"
while path := path.rpartition("/")[0]:
    os.chmod(path, [0o000, 0o555, 0o444][path.count("/") % 3])
tree = Tree(os.open(".", os.O_PATH), None)
print(delete_tree(tree, parse_path("top"), Stop()), os.listdir("."))
"""


def test_an_ordinary_user_deletes_directories_that_were_locked(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", UNREADABLE, str(tmp_path)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("120 []\n", "")
