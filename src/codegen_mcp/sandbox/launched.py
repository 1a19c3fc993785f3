"""A launched guest and how it is ended: pidfds for the two processes we know, then the rest.

pidfd_open(2): a pidfd keeps meaning the same process, whatever happens to its number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox.cgroup import Cgroup
from codegen_mcp.sandbox.launcher import ErrorPipe, Spawner, descendants, ended, parent_of

END_TIMEOUT_S = 10.0
_PATIENCE_S = 1.0
"""After this long the control group is thawed (a frozen process cannot die) and killed."""


class LaunchedGuest:
    """Implements ``GuestProcess`` for a launcher that has the guest as its only child."""

    def __init__(
        self,
        *,
        control: socket.socket,
        launcher: subprocess.Popen[bytes],
        spawner: Spawner,
        errors: ErrorPipe,
        cgroup: Cgroup | None,
    ) -> None:
        self.errors = errors
        self._control = control
        self._launcher = launcher
        self._spawner = spawner  # its thread is the parent that the launcher must outlive never
        self._cgroup = cgroup
        self._launcher_pidfd = os.pidfd_open(launcher.pid)
        self._guest_pid = 0
        self._guest_pidfd = -1
        self._over = False

    @property
    def control(self) -> socket.socket:
        """Worker's end of the control socket."""
        return self._control

    @property
    def guest_pid(self) -> int:
        """Host pid of the guest; 0 before it is known."""
        return self._guest_pid

    @property
    def launcher_pid(self) -> int:
        """Host pid of the launcher."""
        return self._launcher.pid

    def found_guest(self, pid: int) -> bool:
        """Note the guest's pid; False when it is not the launcher's child (it ended meanwhile)."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        if parent_of(pid) != self._launcher.pid:
            os.close(pidfd)
            return False
        self._guest_pid, self._guest_pidfd = pid, pidfd
        return True

    def processes(self) -> list[int]:
        """Host pids inside, launcher included."""
        if self._over:
            return []
        known = set(self._cgroup.pids()) if self._cgroup is not None else set()
        if not known:
            known = {self._launcher.pid, *descendants(self._launcher.pid)}
        return sorted(known)

    def kill(self) -> None:
        """SIGKILL the namespace's init, which takes everything in it along, and the launcher."""
        for pidfd in (self._guest_pidfd, self._launcher_pidfd):
            if pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    async def wait(self) -> None:
        """Return when nothing is left.

        An init is waited for by the kernel's own rule: it does not end before every other
        process of its namespace has (pid_namespaces(7)).

        Raises:
            SandboxUnavailable: Something still lives after 10 s.
        """
        if self._over:
            return
        if not await self._both_ended(_PATIENCE_S):
            if self._cgroup is not None:
                self._cgroup.thaw()
                self._cgroup.kill()
            if not await self._both_ended(END_TIMEOUT_S - _PATIENCE_S):
                raise SandboxUnavailable(
                    f"processes {self.processes()!r} of a sandbox do not end; look at their "
                    "state in /proc/PID/stack"
                )
        self._launcher.wait()
        self._over = True
        for pidfd in (self._guest_pidfd, self._launcher_pidfd):
            if pidfd >= 0:
                os.close(pidfd)
        self._guest_pidfd = self._launcher_pidfd = -1
        self.errors.close()
        self._control.close()

    async def _both_ended(self, timeout_s: float) -> bool:
        for pidfd in (self._launcher_pidfd, self._guest_pidfd):
            if pidfd >= 0 and not await ended(pidfd, timeout_s):
                return False
        return True
