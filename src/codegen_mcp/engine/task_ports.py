"""What the task executor needs of a session; ``session.Session`` has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.egress.service import SessionEgress
from codegen_mcp.engine.artifacts.left_files import LeftFiles
from codegen_mcp.sandbox.base import Sandbox
from codegen_mcp.tools.base import ToolSpec, Workspace


class RunTurn(AbstractAsyncContextManager[None], Protocol):
    """A place in the line of those who may run code; entering it waits for the turn."""

    def abandon(self) -> None:
        """Give it back without having entered; idempotent."""


class TaskWorkspace(Workspace, Protocol):
    """Files, and those among them that are to be kept."""

    @property
    def left_files(self) -> LeftFiles:
        """What code left in ``artifacts/``."""


class TaskSession(Protocol):
    """A session as tasks see it."""

    @property
    def session_id(self) -> str:
        """Its handle."""

    @property
    def directory(self) -> Path:
        """Host directory for files of ours."""

    @property
    def venv(self) -> Path:
        """Host path of its environment."""

    @property
    def workspace(self) -> TaskWorkspace:
        """Its files."""

    @property
    def interpreter(self) -> Interpreter:
        """What runs its code."""

    @property
    def limits(self) -> ResourceLimits:
        """Its bounds."""

    @property
    def env(self) -> Mapping[str, str]:
        """Its variables."""

    @property
    def egress(self) -> SessionEgress | None:
        """Its way out."""

    @property
    def ending(self) -> bool:
        """Whether it is being destroyed."""

    @property
    def durability(self) -> str:
        """``interval``, ``turn`` or ``sync``."""

    def note_task(self, task_id: str) -> None:
        """Put a task in front of the recent ones."""

    def activity(
        self, cancel: Callable[[str], object] | None = None
    ) -> AbstractContextManager[None]:
        """Count a task; raises Full, Draining or NotFound when it may not begin."""

    def run_slot(self) -> RunTurn:
        """Take the next place in the line; raises Full."""

    async def sandbox(self) -> Sandbox:
        """Return a live sandbox; boots one when the last was lost."""


class FindsSessions(Protocol):
    """The session pool."""

    def session(self, session_id: str) -> TaskSession:
        """Return a live session; NotFound when there is none."""


@dataclass(slots=True)
class Collected:
    """What was registered after a run of code, filled as it goes on."""

    artifacts: list[str] = field(default_factory=list)
    """Ids."""
    note: str = ""
    """What was left out and why, for people; empty when nothing was."""


class SavesTurns(Protocol):
    """Saves sessions whose results are told only once they are saved."""

    def wanted(self, session: TaskSession, spec: ToolSpec) -> bool:
        """Whether this end must wait; asked after each task, so it costs next to nothing."""

    async def save(self, session: TaskSession) -> None:
        """Save it; durable when this returns.

        Raises:
            WorkerError: It could not be saved.
        """


class CollectsFiles(Protocol):
    """Makes artifacts of the files that code left."""

    def wanted(self, session: TaskSession) -> bool:
        """Whether there may be any: asked after each run, so it costs next to nothing."""

    async def collect(self, session: TaskSession, task_id: str, collected: Collected) -> None:
        """Register what is new or changed; nothing of the session runs meanwhile.

        Never raises but for a cancellation: what cannot be registered is told in the note.
        """
