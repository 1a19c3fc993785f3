"""The shell that ends what a killed worker's launchers leave."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codegen_mcp.sandbox.launcher import ENVIRONMENT, MARK
from codegen_mcp.sandbox.watchdog import watchdog

WORKER = """
import subprocess, sys, time
from codegen_mcp.sandbox.launcher import ENVIRONMENT
from codegen_mcp.sandbox.watchdog import watchdog
with watchdog():
    stuck = subprocess.Popen(["/bin/sleep", "600"], env=ENVIRONMENT, start_new_session=True)
    other = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
    print(stuck.pid, other.pid, flush=True)
    time.sleep(600)
"""


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_launcher_left_by_a_killed_worker_is_ended_and_nothing_else():
    worker = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    stuck, other = map(int, worker.stdout.readline().split())
    try:
        assert lives(stuck)
        worker.kill()
        worker.wait()
        deadline = time.monotonic() + 5
        while lives(stuck) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not lives(stuck)
        assert lives(other)
    finally:
        worker.stdout.close()
        for pid in (stuck, other):
            if lives(pid):
                os.kill(pid, signal.SIGKILL)


def shells() -> list[int]:
    """Children of this process that carry the mark among their arguments."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if MARK.encode() in words and int(parent) == os.getpid():
            found.append(int(pid))
    return found


def test_a_worker_that_ends_by_itself_takes_the_shell_along():
    before = set(shells())  # of workers that other tests have in this process
    with watchdog():
        assert len(set(shells()) - before) == 1
    assert set(shells()) <= before


def test_the_mark_is_all_that_launchers_see_beside_the_path():
    assert sorted(ENVIRONMENT) == ["CODEGEN_LAUNCHER", "PATH"]


PRIVATE = """
from codegen_mcp.sandbox.mounts import enter_private_namespace
enter_private_namespace()
import pathlib, sys
from codegen_mcp.sandbox.watchdog import watchdog
with watchdog():
    children = pathlib.Path("/proc/self/task").glob("*/children")
    print(*(one.read_text() for one in children), flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_the_shell_keeps_no_mount_of_the_worker():
    """Else the next worker waits for the volumes until it has looked."""
    worker = subprocess.Popen(
        [sys.executable, "-c", PRIVATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert worker.stdout is not None
        shell = int(worker.stdout.readline())
        ours = os.readlink("/proc/self/ns/mnt")
        deadline = time.monotonic() + 5
        while os.readlink(f"/proc/{shell}/ns/mnt") != ours and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.readlink(f"/proc/{shell}/ns/mnt") == ours
        assert os.readlink(f"/proc/{worker.pid}/ns/mnt") != ours
    finally:
        worker.communicate()
