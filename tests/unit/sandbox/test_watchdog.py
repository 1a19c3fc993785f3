"""The shell that ends what a killed worker's launchers leave."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    with watchdog():
        assert len(shells()) == 1
    assert shells() == []


def test_the_mark_is_all_that_launchers_see_beside_the_path():
    assert sorted(ENVIRONMENT) == ["CODEGEN_LAUNCHER", "PATH"]
