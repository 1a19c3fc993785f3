"""What the engine tells whoever measures it: one method per event, called in the event loop.

Implementations return at once and never raise; ``NoHooks`` is the default.
"""

from __future__ import annotations

from typing import Protocol

from codegen_mcp.core.task import EndedBy, TaskStatus


class EngineHooks(Protocol):
    """Events of sessions, the warm pool and tasks."""

    def session_created(self, *, pooled: bool, seconds: float) -> None:
        """A session was made; ``pooled`` when its sandbox was booted ahead."""

    def session_adopted(self) -> None:
        """A dead worker's session was taken over."""

    def session_destroyed(self, *, reason: str, seconds: float) -> None:
        """A session ended; the reason is ``asked``, ``idle``, ``age`` or ``closed``."""

    def session_refused(self, *, reason: str) -> None:
        """A creation was refused or failed: the error's reason (``FULL``, ...)."""

    def sandbox_lost(self) -> None:
        """A session's sandbox ended by itself."""

    def sandbox_booted(self, *, seconds: float) -> None:
        """A sandbox was booted, ahead or on demand."""

    def boot_failed(self) -> None:
        """A sandbox could not be booted."""

    def pool_taken(self, *, hit: bool) -> None:
        """A creation found a fitting sandbox in the warm pool, or did not."""

    def pool_tampered(self, *, change: str) -> None:
        """A waiting sandbox was not as it was put by (``canary.Change``), and was thrown away."""

    def pool_depth(self, *, ready: int, target: int) -> None:
        """How many sandboxes wait, and how many the pool wants."""

    def task_started(self, *, tool: str) -> None:
        """A task began to run."""

    def task_finished(
        self, *, tool: str, status: TaskStatus, ended_by: EndedBy | None, seconds: float
    ) -> None:
        """A task ended; ``ended_by`` is None when its tool answered with an error."""


class NoHooks:
    """Listens to nothing."""

    def session_created(self, *, pooled: bool, seconds: float) -> None:
        """Do nothing."""

    def session_adopted(self) -> None:
        """Do nothing."""

    def session_destroyed(self, *, reason: str, seconds: float) -> None:
        """Do nothing."""

    def session_refused(self, *, reason: str) -> None:
        """Do nothing."""

    def sandbox_lost(self) -> None:
        """Do nothing."""

    def sandbox_booted(self, *, seconds: float) -> None:
        """Do nothing."""

    def boot_failed(self) -> None:
        """Do nothing."""

    def pool_taken(self, *, hit: bool) -> None:
        """Do nothing."""

    def pool_tampered(self, *, change: str) -> None:
        """Do nothing."""

    def pool_depth(self, *, ready: int, target: int) -> None:
        """Do nothing."""

    def task_started(self, *, tool: str) -> None:
        """Do nothing."""

    def task_finished(
        self, *, tool: str, status: TaskStatus, ended_by: EndedBy | None, seconds: float
    ) -> None:
        """Do nothing."""
