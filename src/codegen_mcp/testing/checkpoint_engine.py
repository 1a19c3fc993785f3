"""A real engine in this process, for tests of checkpoints: real volumes, sandboxes and store."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen_mcp.bootstrap import Engine, open_engine
from codegen_mcp.core.checkpoint import CheckpointInfo, Restored
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.core.limits import MIB
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.engine.base import ErrorEvent, ResultEvent, TaskSubmission
from codegen_mcp.engine.session import Session
from codegen_mcp.sandbox.mounts import mounts_below
from codegen_mcp.settings import Settings
from codegen_mcp.testing.random_tree import Edit, Facts, allocated, apply, owners, tree_of

KEPT_HOLE = 8192
"""Holes of up to a block, and what a file's map takes, need not come again."""


@dataclass(frozen=True, slots=True)
class CheckpointEngine:
    """An engine and what tests ask of it."""

    engine: Engine
    state: Path
    store: Path

    async def create(self, **config: Any) -> str:
        """Make a session."""
        return (await self.engine.sessions.create(SessionConfig(**config))).session_id

    def session(self, session_id: str) -> Session:
        """Return one that lives."""
        return self.engine.sessions.session(session_id)

    def root(self, session_id: str) -> bytes:
        """Its volume on the host."""
        return os.fsencode(self.session(session_id).slot.volume.root)

    def tree(self, session_id: str) -> dict[bytes, Facts]:
        """Its tree as it is now."""
        return tree_of(self.root(session_id))

    def edit(self, session_id: str, edits: Sequence[Edit]) -> None:
        """Change its files from outside, as its user would."""
        user = self.session(session_id).identity
        owner = None if user is None else (user.uid, user.gid)
        apply(self.root(session_id), edits, owner, two_mounts=True)

    async def task(
        self, session_id: str, tool: str, *, task_id: str = "", sequence: int = 0, **arguments: Any
    ) -> ResultEvent:
        """Run a task to its end.

        Raises:
            WorkerError: That is how it ended.
        """
        tasks = self.engine.tasks
        submission = TaskSubmission(
            task_id=task_id,
            session_id=session_id,
            tool=tool,
            arguments=arguments,
            sequence=sequence,
        )
        number = await tasks.submit(submission)
        async with aclosing(tasks.events(number, session_id)) as events:
            async for event in events:
                if isinstance(event, ErrorEvent):
                    assert isinstance(event.error, WorkerError)
                    raise event.error
                if isinstance(event, ResultEvent):
                    return event
        raise AssertionError("a task without an end")

    async def python(self, session_id: str, code: str, **more: Any) -> str:
        """Run code that must end well; what it printed."""
        value: Any = (await self.task(session_id, "run.python", code=code, **more)).value
        assert value.exit_code == 0, value
        printed: str = value.stdout
        return printed

    async def save(
        self, session_id: str, *, name: str = "", incremental: bool = False
    ) -> CheckpointInfo:
        """Take a checkpoint."""
        return await self.engine.checkpoints.save(session_id, name=name, incremental=incremental)

    async def restore(self, info: CheckpointInfo, *, new: bool = True) -> Restored:
        """Restore one."""
        return await self.engine.checkpoints.restore(
            str(info.checkpoint_id), create_new_session=new
        )

    async def comes_back(self, info: CheckpointInfo, tree: Mapping[bytes, Facts]) -> None:
        """Restore into a new session, compare everything, and destroy that session."""
        restored = await self.restore(info)
        try:
            assert self.tree(restored.session_id) == tree
            user = self.session(restored.session_id).identity
            assert user is not None
            assert owners(self.root(restored.session_id)) == {(user.uid, user.gid)}
        finally:
            await self.destroy(restored.session_id)

    def keeps_holes(self, original: str, copy: str) -> bool:
        """Whether no file of a copy takes much more of the disk than the original's."""
        wanted = allocated(self.root(original))
        taken = allocated(self.root(copy))
        return all(size <= wanted[path] + KEPT_HOLE for path, size in taken.items())

    async def destroy(self, session_id: str) -> None:
        """End a session at once."""
        await self.engine.sessions.destroy(session_id, force=True)

    def objects(self, session_id: str = "") -> list[str]:
        """Names of the objects in the store, of one session or of all."""
        found = (path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if str(path).startswith(session_id))

    def object(self, info: CheckpointInfo, suffix: str) -> Path:
        """Path of an object of a checkpoint."""
        return self.store / (info.checkpoint_id.key + suffix)

    def remains(self) -> list[str]:
        """Drafts, and objects of what is no checkpoint: nothing that should stay."""
        drafts = [f"drafts/{path.name}" for path in (self.state / "drafts").iterdir()]
        names = self.objects()
        whole = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        whole |= {name.removesuffix(".deleted") for name in names if name.endswith(".deleted")}
        return drafts + [name for name in names if name.partition(".")[0] not in whole]


@contextmanager
def state_directory() -> Iterator[Path]:
    """A place for a worker's state, and a look at what it left mounted."""
    base = Path(tempfile.mkdtemp(prefix="codegen-checkpoints-", dir="/var/tmp"))
    base.chmod(0o711)
    try:
        yield base / "state"
    finally:
        left = [entry.mount_point for entry in mounts_below(base)]
        for mount_point in left:
            subprocess.run(["umount", "--lazy", str(mount_point)], check=True)
        shutil.rmtree(base)
    assert left == []


@asynccontextmanager
async def checkpoint_engine(
    state: Path, *, keep_sessions: bool = False, **settings: Any
) -> AsyncIterator[CheckpointEngine]:
    """Open an engine over a state directory."""
    values = {
        "base_workspace": state,
        "max_sessions": 16,
        "pool_size": 2,
        "disk_bytes": 64 * MIB,
        "memory_bytes": 128 * MIB,
        "disk_reserve_bytes": 0,
        "require_isolation": "process-bare",
        **settings,
    }
    chosen = Settings.model_validate(values)
    store = Path(chosen.checkpoint_dir or state / "store")
    async with open_engine(chosen, keep_sessions=keep_sessions) as engine:
        yield CheckpointEngine(engine, state, store)
