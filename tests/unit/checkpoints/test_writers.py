"""Which files a process can write without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.engine.checkpoints.writers import mapped_writers
from codegen_mcp.testing.tree_editor import TreeEditor


@pytest.fixture
def editor() -> Iterator[TreeEditor]:
    with TreeEditor() as started:
        yield started


def test_a_file_that_is_mapped_is_found_although_it_is_closed(
    tmp_path: Path, editor: TreeEditor
) -> None:
    editor.edit(tmp_path, [("write", "a", 9), ("write", "b", 9), ("map", "a")])
    found = mapped_writers([editor.pid])
    assert (tmp_path / "a").stat().st_ino in found.inodes & found.mapped
    assert (tmp_path / "b").stat().st_ino not in found.inodes
    assert found.unseen == []
    editor.edit(tmp_path, [("unmap",)])
    assert (tmp_path / "a").stat().st_ino not in mapped_writers([editor.pid]).inodes


def test_a_file_that_is_open_for_writing_is_found_whatever_became_of_its_name(
    tmp_path: Path, editor: TreeEditor
) -> None:
    editor.edit(tmp_path, [("write", "a", 9), ("hold", "a"), ("rename", "a", "b")])
    found = mapped_writers([editor.pid])
    assert (tmp_path / "b").stat().st_ino in found.inodes - found.mapped
    editor.edit(tmp_path, [("release",)])
    assert (tmp_path / "b").stat().st_ino not in mapped_writers([editor.pid]).inodes


def test_what_is_only_read_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    with path.open("rb"):
        assert path.stat().st_ino not in mapped_writers([os.getpid()]).inodes


def test_a_process_that_has_ended_is_left_out(tmp_path: Path) -> None:
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    assert mapped_writers([ended.pid]).inodes == set()


def test_a_thread_with_descriptors_of_its_own_hides_nothing(tmp_path: Path) -> None:
    """unshare(CLONE_FILES): the process's table has no such descriptor."""
    import ctypes

    path = tmp_path / "a"
    ready, end = threading.Event(), threading.Event()

    def hide() -> None:
        clone_files = 0x400
        ctypes.CDLL(None).unshare(clone_files)
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        ready.set()
        end.wait()
        os.close(fd)

    thread = threading.Thread(target=hide)
    thread.start()
    try:
        ready.wait()
        assert path.stat().st_ino in mapped_writers([os.getpid()]).inodes
    finally:
        end.set()
        thread.join()


_LOOK = """
import os, sys
from codegen_mcp.engine.checkpoints.writers import mapped_writers
os.setgroups([])
os.setgid(61778)
os.setuid(61778)
found = mapped_writers([int(sys.argv[1])])
print(len(found.inodes), found.unseen)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_process_that_may_not_be_looked_into_is_named(editor: TreeEditor) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOOK, str(editor.pid)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"0 [{editor.pid}]\n"
