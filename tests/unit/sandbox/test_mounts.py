"""The kernel's mount table is read right, and mounts are made without helpers."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from codegen_mcp.sandbox.mounts import (
    MS_NODEV,
    MS_NOSUID,
    enter_private_namespace,
    mount,
    mounts_below,
    parse_mountinfo,
    read_mounts,
    unmount,
)
from codegen_mcp.testing.kernel_objects import nothing_left

TABLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
40 27 7:3 / /srv/a\040b\134c\012d rw,nosuid,nodev - ext4 /dev/loop3 rw,errors=remount-ro
41 40 0:50 /sub /srv/a\040b\134c\012d/in ro - tmpfs no\040name rw,size=4k
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def test_escapes_optional_fields_and_options_are_understood() -> None:
    table = parse_mountinfo(TABLE)
    assert [entry.mount_id for entry in table] == [22, 27, 40, 41]
    odd = table[2]
    assert odd.mount_point == Path("/srv/a b\\c\nd")
    assert odd.device == "7:3"
    assert odd.options == {"rw", "nosuid", "nodev"}
    assert odd.super_options == {"rw", "errors=remount-ro"}
    assert table[1].fs_type == "ext4"
    assert table[3].root == Path("/sub")
    assert table[3].source == "no name"


def test_what_is_below_a_directory_comes_innermost_first() -> None:
    table = parse_mountinfo(TABLE)
    assert [entry.mount_id for entry in mounts_below(Path("/srv"), table)] == [41, 40]
    assert mounts_below(Path("/sr"), table) == []


def test_this_process_s_own_table_has_a_root() -> None:
    assert any(entry.mount_point == Path("/") for entry in read_mounts())


@needs_root
def test_a_mount_with_an_odd_name_is_made_found_and_taken_down(tmp_path: Path) -> None:
    target = tmp_path / "with blank\nand \\ more"
    target.mkdir()
    with nothing_left(tmp_path):
        mount("none", target, "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=700")
        found = mounts_below(tmp_path)
        assert [entry.mount_point for entry in found] == [target]
        assert {"nosuid", "nodev"} <= found[0].options
        unmount(target)
    with pytest.raises(OSError, match="Invalid argument") as caught:
        unmount(target)
    assert caught.value.errno == errno.EINVAL


@needs_root
def test_a_busy_mount_says_so(tmp_path: Path) -> None:
    with nothing_left(tmp_path):
        mount("none", tmp_path, "tmpfs")
        with open(tmp_path / "open", "w"):
            with pytest.raises(OSError, match="busy") as caught:
                unmount(tmp_path)
            assert caught.value.errno == errno.EBUSY
        unmount(tmp_path)


@needs_root
def test_mounts_of_a_private_namespace_are_seen_by_nobody_else_and_end_with_it(
    tmp_path: Path,
) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from codegen_mcp.sandbox.mounts import enter_private_namespace, mount, mounts_below\n"
        "enter_private_namespace()\n"
        "target = Path(sys.argv[1])\n"
        "mount('none', target, 'tmpfs')\n"
        "print(len(mounts_below(target)), flush=True)\n"
        "sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert mounts_below(tmp_path) == []
        process.kill()
    assert process.returncode == -9


def test_a_namespace_is_not_entered_by_one_thread_of_several() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="before the"):
            enter_private_namespace()
    finally:
        stop.set()
        thread.join()
