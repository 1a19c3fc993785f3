"""A worker that is killed at any moment of a checkpoint: what it had answered is there, whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from codegen_mcp.core.errors import Full
from codegen_mcp.core.limits import MIB
from codegen_mcp.testing.checkpoint_engine import (
    CheckpointEngine,
    checkpoint_engine,
    state_directory,
)
from codegen_mcp.testing.crash_lives import LOG, read_log
from codegen_mcp.testing.random_tree import Facts
from codegen_mcp.testing.small_host import fill, small_host

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
KILLS = 200 if SOAK else 20
KEEP = 2
LONGEST_S = 0.25
"""Of a life, from when it begins to work; long enough for each operation to end now and then."""

pytestmark = [
    pytest.mark.usefixtures("kernel_limits"),
    pytest.mark.timeout(3600 if SOAK else 120),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]


class Lives:
    """The process that forks lives."""

    def __init__(self, state: Path, **settings: Any) -> None:
        self.state = state
        (state.parent / LOG).touch()
        self._errors = (state.parent / "errors").open("w+")
        command = [sys.executable, "-m", "codegen_mcp.testing.crash_lives", str(state)]
        self._process = subprocess.Popen(
            [*command, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
            text=True,
        )
        self._answer()

    def live(self, seed: int, seconds: float) -> list[dict[str, Any]]:
        """Let a life work for that long, and kill it; what it wrote down."""
        known = len(read_log(self.state))
        pid = int(self._ask(str(seed)))
        try:
            deadline = time.monotonic() + 60
            while not any(line["what"] == "ready" for line in read_log(self.state)[known:]):
                assert time.monotonic() < deadline, self.errors
                assert os.path.exists(f"/proc/{pid}/exe"), self.errors
                time.sleep(0.005)
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGKILL)
            status = self._answer()
        assert status == str(int(signal.SIGKILL)), self.errors
        return read_log(self.state)[known:]

    @property
    def errors(self) -> str:
        """What was said on standard error."""
        return Path(self._errors.name).read_text()

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._errors.close()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer, self.errors
        return answer


@contextmanager
def lives(state: Path, **settings: Any) -> Iterator[Lives]:
    started = Lives(state, **settings)
    try:
        yield started
    finally:
        started.close()


@dataclass
class Model:
    """What must be there, and what may be, after the lines that a life wrote."""

    session: str = ""
    trees: set[str] = field(default_factory=set)
    """What the session may be; the empty text is gone."""
    saved: dict[str, str] = field(default_factory=dict)
    """Every checkpoint that was ever answered or found, with its tree."""
    shelves: list[list[str]] = field(default_factory=lambda: [[]])
    """What may be listed, oldest first; several where an operation was interrupted."""
    saving: str = ""
    """Tree of a save without an answer."""
    restoring: str = ""
    """Checkpoint of a restore into a new session that may be there."""

    def follow(self, lines: Sequence[dict[str, Any]]) -> None:
        """Take in what was done."""
        for line in lines:
            getattr(self, f"_{line['what']}", lambda _: None)(line)

    def _created(self, line: dict[str, Any]) -> None:
        self.session, self.trees = line["session"], {line["tree"]}

    def _save(self, line: dict[str, Any]) -> None:
        self.saving, self.trees = line["tree"], {line["tree"]}
        self.shelves += [[*shelf, "?"][-keep:] for shelf in self.shelves for keep in (KEEP, 99)]

    def _saved(self, line: dict[str, Any]) -> None:
        one = line["checkpoint"]
        self.saved[one], self.saving = self.saving, ""
        taken = [shelf for shelf in self.shelves if "?" in shelf]
        self.shelves = [[one if old == "?" else old for old in shelf][-KEEP:] for shelf in taken]

    def _delete(self, line: dict[str, Any]) -> None:
        gone = line["checkpoint"]
        self.shelves += [[one for one in shelf if one != gone] for shelf in self.shelves]

    def _deleted(self, line: dict[str, Any]) -> None:
        self.shelves = [shelf for shelf in self.shelves if line["checkpoint"] not in shelf]

    def _destroy(self, line: dict[str, Any]) -> None:
        self.trees = {*self.trees, ""}

    def _destroyed(self, line: dict[str, Any]) -> None:
        if line["session"] == self.session:
            self.trees = {""}
        self.restoring = ""

    def _place(self, line: dict[str, Any]) -> None:
        assert line["before"] in self.trees
        self.trees = {line["before"], self.saved[line["checkpoint"]]}

    def _new(self, line: dict[str, Any]) -> None:
        self.restoring = line["checkpoint"]

    def _is(self, line: dict[str, Any]) -> None:
        assert line["tree"] == self.saved[line["checkpoint"]], line
        if not self.restoring:
            self.trees = {line["tree"]}

    def _failed(self, line: dict[str, Any]) -> None:
        raise AssertionError(line)

    def _bored(self, line: dict[str, Any]) -> None:
        raise AssertionError("a life had nothing to do any more")

    def _found(self, line: dict[str, Any]) -> None:
        """Compare what a start found."""
        others = {one: tree for one, tree in line["sessions"].items() if one != self.session}
        if others:  # of a restore that was interrupted
            assert list(others.values()) == [self.saved[self.restoring]]
        if self.session:
            assert line["sessions"].get(self.session, "") in self.trees
            self.trees = {line["sessions"].get(self.session, "")}
        listed = sorted(line["listed"], key=number)
        new = [one for one in listed if one not in self.saved]
        assert len(new) <= 1
        for one in new:
            assert self.saving
            self.saved[one] = self.saving
        assert ["?" if one in new else one for one in listed] in self.shelves, (line, self)
        assert line["trees"] == {one: self.saved[one] for one in listed}
        assert line["problems"] == {}
        assert line["remains"] == []
        self.shelves, self.saving, self.restoring = [listed], "", ""


def number(checkpoint: str) -> int:
    return int(checkpoint.rpartition(".")[2])


def test_whatever_was_answered_is_there_after_a_kill_at_any_moment() -> None:
    dice = random.Random()
    seed = dice.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    model = Model()
    done: dict[str, int] = {}
    with (
        state_directory() as state,
        lives(
            state,
            max_checkpoints=KEEP,
            pool_size=0,
            disk_bytes=8 << 20,
            require_isolation="process-bare",
            sandbox="process-bare",
        ) as killed,
    ):
        for life in range(KILLS + 1):
            lines = killed.live(seed + life, dice.random() * LONGEST_S)
            model.follow(lines)
            for line in lines:
                done[line["what"]] = done.get(line["what"], 0) + 1
    print(done)
    assert done["found"] == KILLS + 1
    assert {"saved", "is"} <= done.keys()


TRIES = 200 if SOAK else 9


async def test_a_full_store_is_told_and_costs_nothing_that_was_answered(tmp_path: Path) -> None:
    with state_directory() as state, small_host(tmp_path, 48 * MIB) as host:
        async with checkpoint_engine(
            state, checkpoint_dir=str(host / "store"), max_checkpoints=3, pool_size=0
        ) as rig:
            await fill_at_random(rig, host, 4 * MIB)


async def test_a_full_state_directory_is_told_and_costs_nothing_that_was_answered(
    tmp_path: Path,
) -> None:
    with state_directory() as elsewhere, small_host(elsewhere.parent, 192 * MIB) as host:
        host.chmod(0o711)
        async with checkpoint_engine(
            host / "state",
            checkpoint_dir=str(tmp_path / "store"),
            disk_bytes=16 * MIB,
            max_checkpoints=3,
            pool_size=0,
        ) as rig:
            await fill_at_random(rig, host, 80 * MIB)


async def fill_at_random(rig: CheckpointEngine, host: Path, most: int) -> None:
    """Save and restore with more or less of a host's disk left; nothing but Full may go wrong."""
    dice = random.Random()
    seed = dice.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    session_id = await rig.create()
    taken: dict[str, dict[bytes, Facts]] = {}
    ends: dict[str, int] = {}
    # A third without room for what is new, a third with enough, and the first with certainty.
    rooms = [(0, -1, most)[number % 3] for number in range(1, TRIES)]
    dice.shuffle(rooms)
    for number, room in enumerate([most, *rooms]):
        size = dice.choice([0, 1000, *((MIB, 3 * MIB) if number else ())])
        if room == 0:
            size = 3 * MIB
        rig.edit(session_id, [("write", b"workspace/%d" % (number % 3), size, number * 4 + 1)])
        before = rig.tree(session_id)
        filler = fill(host, room if room >= 0 else dice.randrange(most))
        what = dice.choice(["save", "save", "new", "place"]) if taken and room else "save"
        try:
            if what == "save":
                info = await rig.save(session_id, incremental=dice.random() < 0.6)
                taken[str(info.checkpoint_id)] = before
            else:
                chosen = dice.choice(list(taken))
                restored = await rig.engine.checkpoints.restore(
                    chosen, create_new_session=what == "new"
                )
                assert rig.tree(restored.session_id) == taken[chosen]
                before = taken[chosen] if what == "place" else before
                if what == "new":
                    await rig.destroy(restored.session_id)
        except Full as error:
            ends[error.reason] = ends.get(error.reason, 0) + 1
        else:
            ends[what] = ends.get(what, 0) + 1
        finally:
            filler.unlink()
        assert rig.tree(session_id) == before
        await rig.engine.sessions.cleaned()
        assert rig.remains() == []
        listed = {str(one.checkpoint_id) for one in await rig.engine.checkpoints.list()}
        taken = {one: tree for one, tree in taken.items() if one in listed}
        assert set(taken) == listed
    for one in await rig.engine.checkpoints.list():
        await rig.comes_back(one, taken[str(one.checkpoint_id)])
    print(ends)
    assert ends.keys() - {"DISK_FULL", "save", "new", "place"} == set()
    assert ends["DISK_FULL"]
    assert ends["save"]
