"""Stopping by signals, where there is no control group: nothing moves, and only ours go on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from codegen_mcp.core.errors import WrongState
from codegen_mcp.sandbox.freezing import Freezer, stands_still
from codegen_mcp.sandbox.launcher import descendants

WITHIN_S = 5.0
SPIN = "while True: pass"
FORKS = """
import os
while True:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
"""
THREADS = """
import threading
def spin():
    while True: pass
for _ in range(3):
    threading.Thread(target=spin, daemon=True).start()
spin()
"""


@contextmanager
def process(code: str) -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-IS", "-c", code])
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def tree(pid: int) -> list[int]:
    return [pid, *descendants(pid)]


def until(pid: int, *, still: bool) -> None:
    deadline = time.monotonic() + WITHIN_S
    while stands_still(pid) is not still:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("code", [SPIN, FORKS, THREADS], ids=["spins", "forks", "threads"])
async def test_what_runs_is_stopped_and_goes_on(code: str) -> None:
    with process(code) as pid:
        freezer = Freezer(lambda: tree(pid), None)
        for _ in range(3):
            report = await freezer.freeze()
            assert (report.frozen, report.how) == (True, "stopped")
            assert all(map(stands_still, tree(pid)))
            freezer.thaw()
            until(pid, still=False)


async def test_what_code_itself_had_stopped_stays_stopped() -> None:
    with process(SPIN) as one, process(SPIN) as other:
        os.kill(other, signal.SIGSTOP)
        until(other, still=True)
        freezer = Freezer(lambda: [one, other], None)
        assert (await freezer.freeze()).frozen
        freezer.thaw()
        until(one, still=False)
        assert stands_still(other)


async def test_what_ends_in_the_freeze_and_a_second_thaw_do_no_harm() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with process(SPIN) as pid:
        freezer = Freezer(lambda: [pid], None)
        await freezer.freeze()
        os.kill(pid, signal.SIGKILL)
        freezer.thaw()
        freezer.thaw()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_where_it_does_not_come_to_rest_nothing_stays_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("codegen_mcp.sandbox.freezing.FREEZE_WITHIN_S", 0.05)
    with process(SPIN) as pid:
        freezer = Freezer(lambda: [pid], None)
        # As if a thread of it hung in an uninterruptible call.
        monkeypatch.setattr("codegen_mcp.sandbox.freezing.stands_still", lambda pid: False)
        report = await freezer.freeze()
        monkeypatch.undo()
        assert (report.frozen, report.how) == (False, "none")
        until(pid, still=False)


async def test_a_thaw_during_the_freeze_undoes_it_when_it_is_done() -> None:
    with process(SPIN) as pid:
        freezer = Freezer(lambda: [pid], None)
        freezing = asyncio.ensure_future(freezer.freeze())
        await asyncio.sleep(0)
        with pytest.raises(WrongState):
            await freezer.freeze()
        freezer.thaw()
        report = await freezing
        assert not report.frozen
        until(pid, still=False)
        assert (await freezer.freeze()).frozen
        freezer.thaw()
