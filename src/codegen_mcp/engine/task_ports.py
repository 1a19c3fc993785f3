"""What the task executor needs of a session; ``session.Session`` has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Protocol

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.sandbox.base import Sandbox
from codegen_mcp.tools.base import Workspace


class RunTurn(AbstractAsyncContextManager[None], Protocol):
    """A place in the line of those who may run code; entering it waits for the turn."""

    def abandon(self) -> None:
        """Give it back without having entered; idempotent."""


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
    def workspace(self) -> Workspace:
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
    def ending(self) -> bool:
        """Whether it is being destroyed."""

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
