"""Real sessions over scripted sandboxes: enough of a pool to run a task executor in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any

from codegen_mcp.core.clock import Clock, SystemClock
from codegen_mcp.core.errors import Draining
from codegen_mcp.core.ids import new_session_id
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.engine.artifacts.left_files import LeftFiles
from codegen_mcp.engine.base import TaskEvent, TaskSubmission
from codegen_mcp.engine.hooks import EngineHooks, NoHooks
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.pause import not_found
from codegen_mcp.engine.run_line import Line
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.engine.session_services import SessionServices
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.task_config import TaskConfig
from codegen_mcp.engine.task_executor import TaskExecutor
from codegen_mcp.engine.task_ledger import TaskLedger
from codegen_mcp.engine.task_ports import CollectsFiles
from codegen_mcp.languages.base import Installer
from codegen_mcp.sandbox.base import Sandbox
from codegen_mcp.sandbox.volumes.base import VolumeUsage
from codegen_mcp.testing.memory_workspace import MemoryWorkspace
from codegen_mcp.testing.scripted_sandbox import Script, ScriptedSandbox
from codegen_mcp.tools.base import Tool, ToolModel

Arguments = ToolModel | Mapping[str, Any] | str
PYTHON = Interpreter(
    language="python",
    name="python3",
    version="3.11.2",
    executable=Path("/usr/bin/python3"),
    trees=(),
    site_packages="lib/python3/site-packages",
    template=Path("/nonexistent"),
)


class PlainVolume:
    """A directory that nothing bounds."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "volume"

    def moved(self, directory: Path) -> None:
        """Follow."""
        self.root = directory / "volume"

    def usage(self) -> VolumeUsage:
        """Nothing is counted."""
        return VolumeUsage(used_bytes=0, size_bytes=1 << 30, full=False)

    def abandon(self) -> None:
        """Keep what is there."""

    async def detach(self) -> None:
        """There is no mount."""


class ClosableWorkspace(MemoryWorkspace):
    """Holds no descriptor; nothing is ever left in its ``artifacts/``."""

    @property
    def left_files(self) -> LeftFiles:
        """There are none."""
        raise NotImplementedError("this rig has no collector of files")

    def close(self) -> None:
        """Nothing to let go of."""


class TaskRig:
    """Sessions below ``root``, and a task executor over them: ``async with`` it."""

    def __init__(
        self,
        root: Path,
        tools: Mapping[str, Tool[Any, Any]],
        *,
        config: TaskConfig | None = None,
        limits: ResourceLimits | None = None,
        clock: Clock | None = None,
        hooks: EngineHooks | None = None,
        installers: Mapping[str, Installer] | None = None,
        collector: CollectsFiles | None = None,
        script: Script | None = None,
    ) -> None:
        self._root = root
        self._clock = clock or SystemClock()
        self._limits = limits or ResourceLimits()
        self._script = script
        self._owned = OwnedTasks()
        self._sessions: dict[str, Session] = {}
        self.draining = False
        self.runs = Line(1000, 1000, "the worker")
        self.sandboxes: dict[str, ScriptedSandbox] = {}
        self.ledger = TaskLedger(self._clock, config)
        self._services = SessionServices(
            clock=self._clock,
            hooks=hooks or NoHooks(),
            tasks=self._owned,
            boot=self._boot,
            gate=self,
            runs=self.runs,
            waiting_limit=1000,
            isolation={},
        )
        self.tasks = TaskExecutor(
            self,
            tools,
            self.ledger,
            installers=installers,
            collector=collector,
            hooks=hooks,
            clock=self._clock,
        )

    async def __aenter__(self) -> TaskRig:
        """Start."""
        await self.tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every task, then close what is left."""
        await self.tasks.__aexit__(kind, error, trace)
        await self._owned.aclose()

    async def submit(
        self, session: Session, tool: str, arguments: Arguments = "", **fields: Any
    ) -> str:
        """Submit a task; further fields are those of ``TaskSubmission``."""
        return await self.tasks.submit(
            TaskSubmission(
                task_id=fields.pop("task_id", ""),
                session_id=session.session_id,
                tool=tool,
                arguments=arguments,
                **fields,
            )
        )

    async def follow(self, session: Session, task_id: str, **offsets: int) -> list[TaskEvent]:
        """Everything that a reader is given, to the end."""
        async with aclosing(self.tasks.events(task_id, session.session_id, **offsets)) as events:
            return [event async for event in events]

    async def end_of(
        self, session: Session, tool: str, arguments: Arguments = "", **fields: Any
    ) -> TaskEvent:
        """Run a task and return its last event."""
        task_id = await self.submit(session, tool, arguments, **fields)
        return (await self.follow(session, task_id))[-1]

    def session(self, session_id: str) -> Session:
        """Return a live session."""
        session = self._sessions.get(session_id)
        if session is None or session.ending:
            raise not_found(session_id)
        return session

    def create(
        self, session_id: str | None = None, *, limits: ResourceLimits | None = None
    ) -> Session:
        """Make a session, or adopt the one whose directory is there."""
        session_id = session_id or new_session_id()
        directory = self._root / session_id
        recent: tuple[str, ...] = ()
        adopted = directory.exists()
        if adopted:
            recent = tuple(self.ledger.recover(session_id, directory))
        else:
            directory.mkdir(parents=True)
        sandbox = self.sandboxes[session_id] = ScriptedSandbox(self._script)
        limits = limits or self._limits
        slot = Slot(
            directory=directory,
            interpreter=PYTHON,
            limits=limits,
            volume=PlainVolume(directory),
            identity=None,
            cgroup=None,
            sandbox=sandbox,
        )
        now_ms = self._clock.unix_ms()
        record = SessionRecord(
            session_id=session_id,
            interpreter=PYTHON.name,
            limits=limits,
            idle_timeout_s=3600,
            created_at_ms=now_ms,
            last_activity_ms=now_ms,
            recent_tasks=recent[:20],
        )
        session = Session(record, slot, ClosableWorkspace(), self._services, adopted=adopted)
        self._sessions[session_id] = session
        return session

    async def destroy(self, session_id: str, *, grace_s: float = 0.0) -> None:
        """End a session as the pool does."""
        session = self.session(session_id)
        hurry = asyncio.Event()
        if not grace_s:
            hurry.set()
        await session.end(hurry=hurry, grace_s=grace_s, reason="the session was destroyed")
        del self._sessions[session_id]
        self.ledger.forget(session_id)

    async def _boot(self, slot: Slot) -> Sandbox:
        if self.draining:
            raise Draining("the rig is closing")
        session_id = slot.directory.name
        sandbox = self.sandboxes[session_id] = ScriptedSandbox(self._script)
        return sandbox
