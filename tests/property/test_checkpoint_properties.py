"""restore(save(session)) is the session: any tree, through any chain, in real sandboxes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from codegen_mcp.core.checkpoint import CheckpointInfo
from codegen_mcp.core.limits import MIB
from codegen_mcp.testing.checkpoint_engine import (
    CheckpointEngine,
    checkpoint_engine,
    state_directory,
)
from codegen_mcp.testing.random_tree import Edit, Facts, edits, tree_of

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
LONGEST = 9
"""A full one and eight on top of it: one more than a chain has links."""

pytestmark = pytest.mark.timeout(3600 if SOAK else 120)
few = settings(
    deadline=None,
    max_examples=300 if SOAK else 6,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


class Opened:
    """An engine that outlives the examples of a test, in a loop that does, too."""

    def __init__(self, runner: asyncio.Runner, rig: CheckpointEngine) -> None:
        self.rig = rig
        self._runner = runner

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self._runner.run(work)


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    if os.geteuid() != 0:
        pytest.skip("the volumes of other users' files need root")
    with state_directory() as state, asyncio.Runner() as runner:
        engine = checkpoint_engine(state, max_checkpoints=LONGEST + 1)
        rig = runner.run(engine.__aenter__())
        try:
            yield Opened(runner, rig)
        finally:
            runner.run(engine.__aexit__(None, None, None))


@given(
    first=st.lists(edits(large=20 * MIB), max_size=16),
    later=st.lists(st.lists(edits(), max_size=8), max_size=LONGEST - 1),
)
@few
def test_any_tree_comes_back_from_any_link_of_a_chain(
    opened: Opened, first: list[Edit], later: list[list[Edit]]
) -> None:
    opened.run(chain(opened.rig, first, later))


async def chain(rig: CheckpointEngine, first: list[Edit], later: list[list[Edit]]) -> None:
    session_id = await rig.create()
    try:
        rig.edit(session_id, first)
        taken = [(await rig.save(session_id), rig.tree(session_id))]
        for changes in later:
            rig.edit(session_id, changes)
            info = await rig.save(session_id, incremental=True)
            taken.append((info, rig.tree(session_id)))
            assert len(info.chain) <= 8
        restored = await rig.restore(taken[-1][0])
        assert rig.keeps_holes(session_id, restored.session_id)
        await rig.destroy(restored.session_id)
        for info, tree in taken:
            await rig.comes_back(info, tree)
            tar_reads(rig, info, tree)
        in_place = await rig.restore(taken[0][0], new=False)
        assert in_place.session_id == session_id
        assert rig.tree(session_id) == taken[0][1]
    finally:
        await rig.destroy(session_id)
        for info, _ in taken:
            await rig.engine.checkpoints.delete(str(info.checkpoint_id))
    assert rig.objects(session_id) == [f"{taken[-1][0].checkpoint_id.key}.deleted"]


def tar_reads(rig: CheckpointEngine, info: CheckpointInfo, tree: dict[bytes, Facts]) -> None:
    """GNU tar reads an archive, has nothing to say, and makes the tree of a full one."""
    archive = str(rig.object(info, ".tar.gz"))
    with tempfile.TemporaryDirectory() as directory:
        command = ["tar", "-tzf", archive]
        if not info.parent:
            command = ["tar", "-xpzf", archive, "-C", directory, "--no-same-owner"]
            command.append("--warning=no-timestamp")  # before 1970, or after today
        done = subprocess.run(command, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), done
        if not info.parent:
            assert in_seconds(tree_of(os.fsencode(directory))) == in_seconds(tree)


def in_seconds(tree: dict[bytes, Facts]) -> dict[bytes, Facts]:
    """An archive has whole seconds only; the manifest has the others."""
    return {path: one._replace(mtime_ns=one.mtime_ns // 10**9) for path, one in tree.items()}
