"""How much the server takes on at once, so that a burst is refused in words and never dropped."""

from __future__ import annotations

from codegen_mcp.core.errors import Draining, Full

NEW_WORK = frozenset(
    f"/codegen.v1.{name}"
    for name in (
        "SessionManagement/CreateSession",
        "SessionManagement/RestoreSession",
        "SessionManagement/ForkSession",
        "TaskExecution/ExecuteTask",
        "WorkspaceFiles/Upload",
    )
)
"""Refused while draining; everything else is served to the end."""

ALWAYS = "/codegen.v1.WorkerLifecycle/"
"""Taken whatever the load is: a coordinator that is too busy for heartbeats would lose workers."""

RETRY_AFTER_S = 0.5
DRAIN_RETRY_AFTER_S = 5.0
"""By then another worker, or this one's successor, is there."""


class Admission:
    """Counts the calls under way and refuses those that are too many."""

    def __init__(self, max_in_flight: int) -> None:
        self._max = max_in_flight
        self.in_flight = 0
        self.draining = False

    def enter(self, method: str) -> None:
        """Count one in; pair it with ``leave``.

        Raises:
            Full: As many as may be are under way; this one was not counted.
            Draining: New work, and the worker is shutting down.
        """
        if self.in_flight >= self._max and not method.startswith(ALWAYS):
            raise Full(
                f"{self._max} calls are under way, as many as this worker takes; retry shortly",
                reason="TOO_MANY_CALLS",
                retry_after_s=RETRY_AFTER_S,
            )
        if self.draining and method in NEW_WORK:
            raise Draining(
                "the worker is shutting down and takes no new work; use another one",
                retry_after_s=DRAIN_RETRY_AFTER_S,
            )
        self.in_flight += 1

    def leave(self) -> None:
        """Count one out."""
        self.in_flight -= 1
