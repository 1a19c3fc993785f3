"""What a run leaves behind: found, killed and reaped."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from config import Config

CHASE_S = 0.2
"""How long single processes are chased before everything is killed at once."""


class Leftovers:
    """Kills every process of the session but the guest (and, if it can, one more)."""

    def __init__(self, config: Config) -> None:
        self.init = config.init
        self.own_uid = config.own_uid
        self.proc = config.proc

    def kill(self, keep: int) -> tuple[int, bool]:
        """Kill all; returns (how many there were, whether ``keep`` still lives).

        kill(2): -1 reaches every process that may be signalled but init and the caller; from a
        namespace's init, or with a uid of our own, that is exactly the session.
        """
        if keep and self.init and self.proc:
            count, clean = self.chase(keep)
            if clean:
                return count, self.lives(keep)
        elif not self.init and not self.own_uid:
            return self.sweep_children(), False
        return self.kill_everything(), False

    def kill_everything(self) -> int:
        """kill(-1) until nothing is left to wait for."""
        count = 0
        while True:
            try:
                os.kill(-1, 9)
            except ProcessLookupError:
                pass
            try:
                os.waitpid(-1, 0)
                count += 1
            except ChildProcessError:
                return count

    def chase(self, keep: int) -> tuple[int, bool]:
        """Kill one by one all but ``keep``; gives up on what forks faster than that."""
        spared = {1, keep}
        seen: set[int] = set()
        deadline = time.monotonic() + CHASE_S
        while True:
            others = [
                p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if p not in spared
            ]
            if not others:
                return len(seen), True
            if time.monotonic() > deadline:
                return len(seen), False
            for pid in others:
                seen.add(pid)
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass
            self.reap()

    def reap(self) -> None:
        """Collect what has ended."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def lives(self, pid: int) -> bool:
        """Whether a child has not ended; collects it when it has."""
        try:
            return os.waitpid(pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return False

    def sweep_children(self) -> int:
        """As subreaper: kill children until none is left; orphans become ours as they appear."""
        count = 0
        while True:
            pids = children_of(os.getpid())
            for pid in pids:
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass
            try:
                # Without a list of children we can only take those that end by themselves.
                if not pids and os.waitpid(-1, os.WNOHANG)[0] == 0:
                    return count
                if pids:
                    os.waitpid(-1, 0)
                count += 1
            except ChildProcessError:
                return count


def children_of(parent: int) -> list[int]:
    """Pids whose parent is this one (proc_tid_children(5)).

    A confined guest may read its own entry of /proc, but not list the others; a kernel built
    without ``children`` needs the list.
    """
    try:
        with open(f"/proc/{parent}/task/{parent}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        pass
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] not in (b"X",):
            found.append(int(name))
    return found
