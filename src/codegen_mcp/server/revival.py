"""Sessions that are gone and want to come back: restored at the next call that names them."""

from __future__ import annotations

from contextvars import ContextVar

from codegen_mcp.core.checkpoint import Restored
from codegen_mcp.core.errors import NotFound
from codegen_mcp.engine.checkpoints.base import Checkpoints
from codegen_mcp.server.caller_gate import CALL_EPOCH

REVIVED: ContextVar[Restored | None] = ContextVar("revived", default=None)
"""What was restored for this call."""
_METHODS = frozenset(
    {
        "/codegen.v1.TaskExecution/ExecuteTask",
        "/codegen.v1.TaskExecution/AttachTask",
        "/codegen.v1.TaskExecution/GetTaskStatus",
        "/codegen.v1.TaskExecution/ListTasks",
        "/codegen.v1.WorkspaceFiles/Upload",
        "/codegen.v1.WorkspaceFiles/Download",
        "/codegen.v1.SessionManagement/CheckpointSession",
        "/codegen.v1.SessionManagement/ForkSession",
        "/codegen.v1.SessionManagement/GetSessionMetadata",
        "/codegen.v1.SessionManagement/SetSessionMetadata",
        "/codegen.v1.SessionManagement/UpdateSessionMetadata",
    }
)
"""Calls that use a session. Asking for its status, or ending it, does not bring it back."""


class Revival:
    """Restores a session under its own id, where its owner asked for that (``auto_restore``)."""

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self._checkpoints = checkpoints

    def wanted(self, method: str, error: Exception) -> bool:
        """Whether a call that failed like this may be tried again after a restore."""
        return (
            self._checkpoints is not None
            and isinstance(error, NotFound)
            and error.reason == "SESSION_NOT_FOUND"
            and method in _METHODS
        )

    async def restore(self, session_id: str) -> bool:
        """Restore it; False where there is nothing to restore, or it was not asked for.

        Raises:
            WorkerError: It was asked for, and could not be done.
        """
        if self._checkpoints is None or not session_id:
            return False
        restored = await self._checkpoints.revive(session_id, epoch=CALL_EPOCH.get())
        REVIVED.set(restored)
        return restored is not None


def words(restored: Restored) -> str:
    """Say what was restored, and what was lost."""
    source = restored.info.checkpoint_id
    told = f"session {restored.session_id} was gone and is restored from {source}"
    return f"{told}; lost: {restored.lost}" if restored.lost else told
