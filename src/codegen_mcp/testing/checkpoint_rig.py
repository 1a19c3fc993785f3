"""Sessions of a real engine, saved by checkpointers over any store."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from codegen_mcp.bootstrap import Engine, open_engine
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.engine.base import ErrorEvent, ResultEvent, TaskSubmission
from codegen_mcp.engine.checkpoints.checkpoint_config import CheckpointConfig
from codegen_mcp.engine.checkpoints.checkpointer import Checkpointer
from codegen_mcp.settings import Settings
from codegen_mcp.stores.base import ObjectStore
from codegen_mcp.stores.s3 import S3Store
from codegen_mcp.stores.s3_config import parse_s3_url
from codegen_mcp.testing.s3_server import S3Server

MIB = 1024 * 1024
RETRY_S = (0.02, 0.05)


def engine_settings(state: Path, **more: Any) -> Settings:
    """Settings of a small engine without a pool."""
    values = {
        "base_workspace": state,
        "max_sessions": 16,
        "pool_size": 0,
        "disk_bytes": 32 * MIB,
        "disk_reserve_bytes": 0,
        "private_mounts": False,
        "require_isolation": "process-bare",
    }
    return Settings.model_validate({**values, **more})


def impatient(server: S3Server, url: str, endpoint: str = "", **more: Any) -> S3Store:
    """Make an S3 store that gives up within a few seconds."""
    config = parse_s3_url(url, server.environ(endpoint))
    quick: dict[str, Any] = {
        "request_timeout_s": 1.5,
        "retry_timeout_s": 1.5,
        "max_retries": 1,
        "first_retry_s": 0.01,
    }
    return S3Store(dataclasses.replace(config, **{**quick, **more}))


@dataclasses.dataclass(slots=True)
class CheckpointRig:
    """An engine, and what tests do with it."""

    engine: Engine

    async def session(self, **config: Any) -> str:
        """Make one; its id."""
        return (await self.engine.sessions.create(SessionConfig(**config))).session_id

    async def run(self, session_id: str, code: str) -> str:
        """Run code that must succeed; what it printed."""
        value = await self._result(session_id, "run.python", code=code)
        assert value.exit_code == 0, value.stderr
        return str(value.stdout).strip()

    async def _result(self, session_id: str, tool: str, **arguments: Any) -> Any:
        tasks = self.engine.tasks
        asked = TaskSubmission(task_id="", session_id=session_id, tool=tool, arguments=arguments)
        async for event in tasks.events(await tasks.submit(asked), session_id):
            if isinstance(event, ResultEvent):
                return event.value
            if isinstance(event, ErrorEvent):
                raise event.error
        raise AssertionError("a task ended without a result")

    async def content(self, checkpoints: Checkpointer, checkpoint_id: str, code: str) -> str:
        """Restore into a new session, run code there, and end it."""
        restored = await checkpoints.restore(checkpoint_id, create_new_session=True)
        try:
            return await self.run(restored.session_id, code)
        finally:
            await self.engine.sessions.destroy(restored.session_id, force=True)

    @asynccontextmanager
    async def checkpoints(
        self, store: ObjectStore, drafts: Path, **config: Any
    ) -> AsyncIterator[Checkpointer]:
        """Open one over an open store."""
        settings = {"remote": store.remote, "exclusive": False, "retry_s": RETRY_S, **config}
        made = Checkpointer(self.engine.sessions, store, drafts, CheckpointConfig(**settings))
        async with made:
            yield made


@asynccontextmanager
async def checkpoint_rig(state: Path, **more: Any) -> AsyncIterator[CheckpointRig]:
    """Open an engine whose sessions end with it."""
    async with open_engine(engine_settings(state, **more), keep_sessions=False) as engine:
        yield CheckpointRig(engine)


async def ids(checkpoints: Checkpointer, session_id: str = "") -> list[str]:
    """Ids of what is listed, newest first."""
    return [str(info.checkpoint_id) for info in await checkpoints.list(session_id)]


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    """Keys in a store."""
    return [item.key async for item in store.list(prefix)]


async def problems(checkpoints: Checkpointer, session_id: str = "") -> Sequence[str]:
    """What verifying finds."""
    return [one.problem async for one in checkpoints.verify(session_id) if not one.ok]


def drafts_in(directory: Path) -> list[str]:
    """Names of the drafts there."""
    return sorted(os.listdir(directory))


async def within(seconds: float, work: Any) -> Any:
    """Await, for so long at most."""
    async with asyncio.timeout(seconds):
        return await work
