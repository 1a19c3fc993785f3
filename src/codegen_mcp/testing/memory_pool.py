"""A session pool over memory: real pool, real files, no processes, time that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from codegen_mcp.core.limits import GIB
from codegen_mcp.engine.hooks import EngineHooks
from codegen_mcp.engine.interpreter_catalog import InterpreterCatalog
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.engine.ports import TaskRecords
from codegen_mcp.engine.session_pool import SessionPool
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.slot_factory import SlotFactory
from codegen_mcp.engine.state_directory import StateDirectory
from codegen_mcp.engine.workspace import SessionWorkspace
from codegen_mcp.testing.manual_clock import ManualClock
from codegen_mcp.testing.memory_host import (
    MemoryCgroups,
    MemoryIdentities,
    MemoryLanguage,
    MemoryVolumes,
)
from codegen_mcp.testing.memory_sandbox import MemoryBackend, MemorySandbox


class MemoryPool:
    """Everything that a pool is wired from. An async context manager over the pool."""

    def __init__(
        self,
        root: Path,
        config: SessionPoolConfig | None = None,
        *,
        records: TaskRecords | None = None,
        hooks: EngineHooks | None = None,
        clock: ManualClock | None = None,
        room_bytes: int = 1024 * GIB,
        volumes: MemoryVolumes | None = None,
        available_memory: Callable[[], int] = lambda: 64 * GIB,
    ) -> None:
        self.state = StateDirectory(root)
        self.backend = MemoryBackend()
        self.volumes = volumes or MemoryVolumes(room_bytes)
        self.cgroups = MemoryCgroups()
        self.identities = MemoryIdentities()
        self.language = MemoryLanguage()
        self.clock = clock or ManualClock()
        self.config = config or SessionPoolConfig()
        self.catalog = InterpreterCatalog([(self.language, self.language.interpreters)])
        self.factory = SlotFactory(
            backend=self.backend,
            volumes=self.volumes,
            cgroups=self.cgroups,
            identities=self.identities,
            catalog=self.catalog,
            hooks=hooks,
        )
        self.state.open()
        self.pool = SessionPool(
            config=self.config,
            state=self.state,
            factory=self.factory,
            catalog=self.catalog,
            open_workspace=open_plainly,
            isolation={"sandbox": "process-bare"},
            records=records,
            hooks=hooks,
            clock=self.clock,
            available_memory=available_memory,
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> MemoryPool:
        """Start the pool."""
        await self._stack.enter_async_context(self.pool)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the pool and free the directory."""
        try:
            await self._stack.aclose()
        finally:
            self.state.close()

    async def crash(self) -> None:
        """Leave files and directory as a killed worker does; the bookkeeping ends with it."""
        await self.pool.close(keep=True)
        self.state.close()

    def sandbox(self, session_id: str) -> MemorySandbox:
        """Return the sandbox that a session has now."""
        found = self.pool.session(session_id).slot.sandbox
        assert isinstance(found, MemorySandbox)
        return found

    async def warmed(self, depth: int) -> None:
        """Wait until at least so many sandboxes wait."""
        await until(lambda: self.pool.warm.depth >= depth)

    @property
    def kept(self) -> dict[str, int]:
        """What the host still lends."""
        return {
            "sandboxes": len(self.backend.open),
            "volumes": len(self.volumes.attached),
            "groups": len(self.cgroups.groups),
            "users": len(self.identities.leased),
            "directories": sum(
                len(list(path.iterdir()))
                for path in (self.state.slots, self.state.sessions, self.state.trash)
            ),
        }


def open_plainly(slot: Slot) -> SessionWorkspace:
    """Open a session's files as the worker's own user."""
    return SessionWorkspace(slot.volume.root / "workspace", None)


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait for a condition; TimeoutError when it does not come."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - a condition of many parts has no one event
            await asyncio.sleep(0.001)
