"""The directory's file after its coordinator was killed, also in the middle of a commit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from codegen_mcp.coordinator.directory.base import RowState
from codegen_mcp.coordinator.directory.sqlite import SqliteDirectory
from codegen_mcp.testing.directory_lives import SESSIONS, TOGETHER, Judge

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))


def live(path: Path, *arguments: str, lines: int) -> list[bytes]:
    """One life; killed after so many lines unless it kills itself."""
    with subprocess.Popen(
        [sys.executable, "-m", "codegen_mcp.testing.directory_lives", str(path), *arguments],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        guard = threading.Timer(60, process.kill)
        guard.start()
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if len(said) == lines:
                    process.kill()
        finally:
            guard.cancel()
            process.kill()
        assert process.wait() == -signal.SIGKILL
    return said


async def judge_it(judge: Judge, path: Path) -> None:
    async with SqliteDirectory(path) as directory:
        rows = await directory.sessions(live_only=False)
        judge.see(rows)
        beats = await directory.beats()
        assert {owner.incarnation for owner in beats} <= {judge.incarnation, judge.incarnation + 1}
        assert all(row.state is not RowState.ENDED for row in rows)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_a_coordinator_killed_at_any_moment_loses_nothing_it_acknowledged(
    tmp_path: Path,
) -> None:
    path, judge, dice = tmp_path / "directory.sqlite", Judge(), random.Random(4)
    for _ in range(200 if SOAK else 10):
        judge.hear(live(path, lines=dice.randrange(1, 400)))
        await judge_it(judge, path)
    assert len(judge.acked) == SESSIONS + len(TOGETHER)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("moment", ["during", "after"])
async def test_a_coordinator_killed_in_the_middle_of_a_commit_leaves_all_of_it_or_nothing(
    tmp_path: Path, moment: str
) -> None:
    path, judge, dice = tmp_path / "directory.sqlite", Judge(), random.Random(5)
    for _ in range(200 if SOAK else 10):
        number = dice.randrange(1, 400 if moment == "during" else 40)
        judge.hear(live(path, moment, str(number), lines=-1))
        before = dict(judge.acked)
        await judge_it(judge, path)
        if moment == "after" and number > 10:
            assert judge.acked != before, "what was committed last is not there"
    assert judge.acked.keys() >= set(TOGETHER)
