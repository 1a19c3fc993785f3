"""Lives of a worker that end by SIGKILL while it saves, restores and deletes checkpoints.

``python -m codegen_mcp.testing.crash_lives STATE SETTINGS`` reads seeds, one on a line, and forks a
life for each; it answers with its pid, and again with the wait status once it has ended. A life
opens a real engine, writes down what it finds (``Found``), and then does one thing after another,
each with a line before and one after, until it is killed. What the machine has (interpreters, what
its sandboxes can do) is found out once, before the first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import random
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

import codegen_mcp.bootstrap.engine as bootstrap
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.languages.python.installer import UvInstaller
from codegen_mcp.languages.python.interpreters import InterpreterDiscovery
from codegen_mcp.sandbox import launcher, watchdog
from codegen_mcp.sandbox.mounts import enter_private_namespace
from codegen_mcp.sandbox.registry import Choice, create
from codegen_mcp.testing.checkpoint_engine import CheckpointEngine, checkpoint_engine
from codegen_mcp.testing.random_tree import Edit, tree_of

LOG = "lives.jsonl"
"""Beside the state directory."""


def read_log(state: Path) -> list[dict[str, Any]]:
    """All lines that lives have written, without a torn last one."""
    whole = (state.parent / LOG).read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


class _Life:
    def __init__(self, rig: CheckpointEngine, dice: random.Random) -> None:
        self._rig = rig
        self._checkpoints = rig.engine.checkpoints
        self._dice = dice
        self._log = os.open(
            rig.state.parent / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )

    async def run(self, count: int) -> None:
        await self._look()
        session_id = await self._start()
        self._say("ready", session=session_id)
        for _ in range(count):
            try:
                await self._one(session_id)
            except WorkerError as error:
                self._say("failed", kind=type(error).__name__, reason=error.reason)
            session_id = await self._start()
        self._say("bored")

    async def _start(self) -> str:
        """Return the session of these lives; restored where it is gone, or a new one."""
        main = self._main()
        if main in self._there():
            return main
        if main and (listed := await self._checkpoints.list(main)):
            return await self._restore_in_place(str(listed[0].checkpoint_id))
        session_id = await self._rig.create()
        self._say("created", session=session_id, tree=self._tree(session_id))
        return session_id

    async def _one(self, session_id: str) -> None:
        listed = [str(one.checkpoint_id) for one in await self._checkpoints.list(session_id)]
        what = self._dice.choice(["save", "save", "save", "new", "place", "delete", "gone"])
        if what == "save" or not listed:
            self._rig.edit(session_id, [self._edit() for _ in range(self._dice.randrange(6))])
            self._say("save", session=session_id, tree=self._tree(session_id))
            info = await self._rig.save(session_id, incremental=self._dice.random() < 0.7)
            self._say("saved", checkpoint=str(info.checkpoint_id))
            return
        chosen = self._dice.choice(listed)
        if what == "new":
            self._say("new", checkpoint=chosen)
            restored = await self._checkpoints.restore(chosen, create_new_session=True)
            self._say("is", checkpoint=chosen, tree=self._tree(restored.session_id))
            await self._rig.destroy(restored.session_id)
            self._say("destroyed", session=restored.session_id)
        elif what == "delete":
            self._say("delete", checkpoint=chosen)
            await self._checkpoints.delete(chosen)
            self._say("deleted", checkpoint=chosen)
        else:
            if what == "gone":
                self._say("destroy", session=session_id)
                await self._rig.destroy(session_id)
                self._say("destroyed", session=session_id)
            await self._restore_in_place(chosen)

    async def _restore_in_place(self, chosen: str) -> str:
        session_id = chosen.partition(".")[0]
        before = self._tree(session_id) if session_id in self._there() else ""
        self._say("place", session=session_id, checkpoint=chosen, before=before)
        restored = await self._checkpoints.restore(chosen, create_new_session=False)
        self._say("is", checkpoint=chosen, tree=self._tree(restored.session_id))
        return restored.session_id

    async def _look(self) -> None:
        """Write down what the last life left, once the start has settled."""
        await self._checkpoints.stock_taken()
        sessions = {one: self._tree(one) for one in self._there()}
        listed = [str(one.checkpoint_id) for one in await self._checkpoints.list()]
        trees = {}
        for one in listed:
            restored = await self._checkpoints.restore(one, create_new_session=True)
            trees[one] = self._tree(restored.session_id)
            await self._rig.destroy(restored.session_id)
        verified = {str(v.checkpoint_id): v.problem async for v in self._checkpoints.verify()}
        for one in sessions.keys() - {self._main()}:
            await self._rig.destroy(one)
        await self._rig.engine.sessions.cleaned()
        remains = self._rig.remains()
        for name in ("slots", "trash"):
            remains += [f"{name}/{path.name}" for path in (self._rig.state / name).iterdir()]
        self._say(
            "found",
            sessions=sessions,
            listed=listed,
            trees=trees,
            problems={one: problem for one, problem in verified.items() if problem},
            remains=remains,
        )

    def _there(self) -> list[str]:
        return [view.session_id for view in self._rig.engine.sessions.list()]

    def _main(self) -> str:
        made = [line for line in read_log(self._rig.state) if line["what"] == "created"]
        return str(made[-1]["session"]) if made else ""

    def _tree(self, session_id: str) -> str:
        tree = tree_of(self._rig.root(session_id))
        return hashlib.sha256(repr(sorted(tree.items())).encode()).hexdigest()[:16]

    def _edit(self) -> Edit:
        dice = self._dice
        path, other = (b"workspace/" + dice.choice([b"a", b"b", b"d/a", b"d/\xff"]) for _ in "12")
        seed = dice.randrange(1 << 20)
        choices: Sequence[Edit] = [
            ("write", path, dice.choice([0, 10, 5000, 300_000]), seed),
            ("write", path, 3000, seed),
            ("disguise", path, seed),
            ("rename", path, other),
            ("link", path, other),
            ("symlink", b"a", path),
            ("mkdir", path),
            ("remove", path),
            ("chmod", path, 0o600),
            ("sparse", path, [(3, 1)], 100_000),
        ]
        return dice.choice(choices)

    def _say(self, what: str, **facts: object) -> None:
        os.write(self._log, json.dumps({"what": what, **facts}).encode() + b"\n")


async def _live(state: Path, settings: Mapping[str, Any], seed: int) -> None:
    async with checkpoint_engine(state, keep_sessions=True, **settings) as rig:
        await _Life(rig, random.Random(seed)).run(10_000)


async def _learn(state: Path, settings: Mapping[str, Any]) -> None:
    """Find out what the machine has, and let later engines know it."""
    discover = InterpreterDiscovery.discover_now
    async with checkpoint_engine(state, **settings) as rig:
        choice = rig.engine.choice
        found = list(rig.engine.host.catalog.interpreters)

    def known(self: InterpreterDiscovery) -> Any:
        return found if all(one.template.exists() for one in found) else discover(self)

    async def chosen(config: Any, **_: Any) -> Choice:
        config = dataclasses.replace(config, allow_bare=True)
        return dataclasses.replace(choice, backend=create(choice.backend.name, config))

    async def prepared(self: UvInstaller, interpreter: object) -> None:
        """Nothing is installed in these lives."""

    for place, name, value in (
        (InterpreterDiscovery, "discover_now", known),
        (UvInstaller, "prepare", prepared),
        (bootstrap, "choose", chosen),
    ):
        setattr(place, name, value)


def _mark_anew() -> None:
    """Have launchers of its own, as any worker: else the last one's watchdog takes them for its."""
    launcher.ENVIRONMENT["CODEGEN_LAUNCHER"] = value = secrets.token_hex(16)
    vars(launcher)["MARK"] = f"CODEGEN_LAUNCHER={value}"
    vars(watchdog)["MARK"] = launcher.MARK


def main() -> None:
    """Serve lives."""
    state, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(40),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    enter_private_namespace()
    asyncio.run(_learn(state, settings))
    _answer("learnt")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _mark_anew()
            enter_private_namespace()
            asyncio.run(_live(state, settings, int(line)))
            os._exit(0)
        _answer(pid)
        _answer(os.waitpid(pid, 0)[1])


def _answer(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
