"""Standing still: every process of a sandbox, by the control group's freezer or by SIGSTOP.

The freezer stops all at one moment as far as code inside can tell. Signals stop one process after
the other: those that still run see others standing, and may write meanwhile. Either way nothing
runs once it is done, the guest included. Sources: signal(7), pidfd_send_signal(2), kernel
Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst and cgroup-v2.rst (cgroup.freeze).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from codegen_mcp.core.errors import WrongState
from codegen_mcp.sandbox.base import FreezeReport
from codegen_mcp.sandbox.cgroup import Cgroup
from codegen_mcp.sandbox.volumes.threads import to_end

FREEZE_WITHIN_S = 2.0
"""A process inside a long write or fsync stops only after it."""
_PAUSE_S = 0.001

How = Literal["cgroup", "stopped", "none"]


class Freezer:
    """Freezes and thaws one sandbox.

    Args:
        processes: Lists the host pids inside.
        cgroup: Used where it has a freezer.
    """

    def __init__(self, processes: Callable[[], list[int]], cgroup: Cgroup | None) -> None:
        self._processes = processes
        self._cgroup = cgroup
        self._wanted = False
        self._working = False
        """Whether a thread is stopping (or releasing) at this moment; nobody else may then."""
        self._stopped: dict[int, int] = {}
        """Host pid to pidfd of what was stopped by signal."""
        self._by_cgroup = False

    @property
    def wanted(self) -> bool:
        """From the call of ``freeze`` to that of ``thaw``."""
        return self._wanted

    async def freeze(self) -> FreezeReport:
        """Stop everything; where that fails, nothing stays stopped.

        Raises:
            WrongState: It is frozen already, or is just being frozen.
        """
        if self._wanted or self._working:
            raise WrongState("the sandbox is frozen already; thaw it first")
        self._wanted = self._working = True
        started = time.monotonic()
        how: How = "none"
        try:
            how = await to_end(self._stop, undo=lambda _: self._release())
        finally:
            self._working = False
            if how != "none" and not self._wanted:  # thawed or closed meanwhile
                how = "none"
                self._release()
            self._wanted = how != "none"
        return FreezeReport(frozen=self._wanted, how=how, took_s=time.monotonic() - started)

    def thaw(self) -> None:
        """Undo ``freeze``, also one that is under way (when it is done); never raises or waits."""
        if self._wanted:
            self._wanted = False
            if not self._working:
                self._release()

    def _stop(self) -> How:
        cgroup = self._cgroup
        if cgroup is not None and "freezer" in cgroup.controllers:
            self._by_cgroup = True
            with suppress(OSError):  # the group may be removed meanwhile
                if cgroup.freeze(FREEZE_WITHIN_S):
                    return "cgroup"
            self._release()
        if self._sweep():
            return "stopped"
        self._release()
        return "none"

    def _release(self) -> None:
        if self._by_cgroup and self._cgroup is not None:
            self._by_cgroup = False
            with suppress(OSError):
                self._cgroup.thaw()
        while self._stopped:  # children first: no parent sees one of them standing
            _, pidfd = self._stopped.popitem()
            with suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            os.close(pidfd)

    def _sweep(self) -> bool:
        """SIGSTOP until all that there is stands still; False when it does not come to that."""
        deadline = time.monotonic() + FREEZE_WITHIN_S
        while self._wanted and time.monotonic() < deadline:
            moving = [pid for pid in self._processes() if not stands_still(pid)]
            if not moving:
                return True
            for pid in moving:
                if not self._stop_one(pid):
                    return False
            time.sleep(_PAUSE_S)
        return False

    def _stop_one(self, pid: int) -> bool:
        """Stop a process, and remember that it was us; False where that is not permitted."""
        try:
            if pid not in self._stopped:
                self._stopped[pid] = os.pidfd_open(pid)
            signal.pidfd_send_signal(self._stopped[pid], signal.SIGSTOP)
        except ProcessLookupError:
            pidfd = self._stopped.pop(pid, -1)
            if pidfd >= 0:
                os.close(pidfd)
        except OSError:
            return False
        return True


def stands_still(pid: int) -> bool:
    """Whether every thread of a process is stopped or dead (proc_pid_stat(5))."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return True
    for task in tasks:
        with suppress(OSError, ValueError):
            with open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
                stat = file.read()
            if stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in b"TtZX":
                return False
    return True
