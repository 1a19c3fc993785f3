"""What the engine asks of its surroundings, beside sandboxes, volumes and languages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from codegen_mcp.engine.artifacts.left_files import LeftFiles
from codegen_mcp.engine.slot import Slot
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.tools.base import Workspace


class IdentityLeaser(Protocol):
    """Leases host users to sessions; none is ever held by two sessions, nor by two workers."""

    def lease(self, *, own: bool = False) -> HostIdentity | None:
        """Take a free one; None where the worker is not root and sessions run as its own user.

        Args:
            own: For the worker itself: far from those that its sessions had.

        Raises:
            Full: None is left.
        """

    def claim(self, identity: HostIdentity) -> bool:
        """Take this one again for an adopted session; False when somebody else holds it."""

    async def release(self, identity: HostIdentity) -> None:
        """Give it back; it is not leased again while a process of it lives."""


class TaskRecords(Protocol):
    """The task records that lie in a session's directory; their format belongs to the executor."""

    def recover(self, session_id: str, directory: Path) -> Sequence[str]:
        """Read a dead worker's records; tasks that ran then are now WORKER_LOST.

        Returns the ids of the session's last tasks, newest first. Never raises: what cannot be
        read is logged and left out.
        """

    def forget(self, session_id: str) -> None:
        """The session is gone: drop what is held of its tasks."""


class OpenWorkspace(Workspace, Protocol):
    """A workspace that holds descriptors; they would keep a volume from being unmounted."""

    @property
    def left_files(self) -> LeftFiles:
        """What code left in ``artifacts/``."""

    def close(self) -> None:
        """Refuse further calls and stop those in threads at their next step; idempotent."""


class OpensWorkspaces(Protocol):
    """Makes the file access of one session."""

    def __call__(self, slot: Slot) -> OpenWorkspace:
        """Open ``slot.volume.root / "workspace"``; new files belong to the slot's identity."""
