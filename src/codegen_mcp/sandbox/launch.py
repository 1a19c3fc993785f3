"""A launched guest: what a backend hands to the guest-driven sandbox (``guest_sandbox.py``).

Backends differ only in how they start and end the guest; everything after that, runs, output,
limits and verdicts, is the same code for all of them.
"""

from __future__ import annotations

import socket
from typing import Protocol


class GuestProcess(Protocol):
    """The guest and the walls around it."""

    @property
    def control(self) -> socket.socket:
        """Worker's end of the SOCK_SEQPACKET pair; non-blocking."""

    @property
    def guest_pid(self) -> int:
        """Host pid of the guest (PID 1 of its namespace where there is one); 0 if not known."""

    def processes(self) -> list[int]:
        """Host pids inside, launcher included."""

    def kill(self) -> None:
        """SIGKILL everything inside (namespace init, else cgroup, else the session's uid)."""

    async def wait(self) -> None:
        """Return when no process of it is left; bounded by 10 s, then raises SandboxUnavailable."""
