"""Whether there is room for further sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager

from codegen_mcp.core.errors import Draining, Full

RETRY_AFTER_S = 2.0


class SessionAdmission:
    """Counts sessions that live and those that are being made."""

    def __init__(self, maximum: int, sessions: Sized, nudge: Callable[[], None]) -> None:
        """``nudge`` is called when one that was being made is made, or came to nothing."""
        self._maximum = maximum
        self._sessions = sessions
        self._nudge = nudge
        self._making = 0
        self.draining = False
        """Whether nothing new is taken."""

    @property
    def room(self) -> int:
        """Sessions that could still be made."""
        return self._maximum - len(self._sessions) - self._making

    @contextmanager
    def making(self, count: int = 1) -> Iterator[None]:
        """Keep room for ``count`` sessions until they are made; 0 takes the place of one.

        Raises:
            Draining: Nothing new is taken. Full: There is no room.
        """
        if self.draining:
            raise draining()
        if self.room < count:
            raise Full(
                f"all {self._maximum} sessions of this worker are taken; destroy one, "
                "wait for one to end, or raise MAX_SESSIONS",
                retry_after_s=RETRY_AFTER_S,
                metadata={"max_sessions": str(self._maximum)},
            )
        self._making += count
        try:
            yield
        finally:
            self._making -= count
            self._nudge()


def draining() -> Draining:
    """The answer while the worker shuts down."""
    return Draining("the worker is shutting down and takes no new sessions; use another one")
