"""A guest inside gVisor: the processes of runsc around it, and its limits."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, Outcome
from codegen_mcp.sandbox.guest_sandbox import GuestSandbox
from codegen_mcp.sandbox.launched import (
    END_TIMEOUT_S,
    PATIENCE_S,
    START_TIMEOUT_S,
    LaunchedGuest,
    end_guest,
    explain,
)
from codegen_mcp.sandbox.launcher import descendants, ended, parent_of

OVERHEAD_BYTES = 128 * MIB
"""What gVisor's kernel, its file server and runsc take in a session's group, beside the session."""
HOST_TASKS = 4096
"""The group also counts the threads of gVisor's kernel, about six for each process inside: were
they to run out, the whole sandbox would end. Inside, RLIMIT_NPROC counts."""


class GvisorGuest(LaunchedGuest):
    """The guest is runsc's sandbox process, which holds gVisor's kernel and everything in it."""

    control_is_stdin = True

    bundle: Path
    """Set by the backend before anything can fail."""
    _others: tuple[int, ...] = ()
    """pidfds of runsc's further processes (file server, its own child)."""

    async def learn_pid(self, report: int) -> None:
        """Wait for the guest's first word; runsc has then written which process holds it."""
        pid = 0
        if await _readable_or_ended(self.control.fileno(), self._launcher_pidfd):
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.bundle / "pid").read_text())
        if pid <= 0 or not self.found_guest(pid):
            await end_guest(self)
            raise SandboxUnavailable(explain("the launcher failed", self.errors))
        found = []
        for other in descendants(self.launcher_pid):
            with contextlib.suppress(ProcessLookupError):
                found.append(os.pidfd_open(other))
        self._others = tuple(found)

    def _is_ours(self, pid: int) -> bool:
        while pid > 1:
            pid = parent_of(pid)
            if pid == self.launcher_pid:
                return True
        return False

    async def abandon(self) -> None:
        """Kill and wait: runsc's processes die with the one that started them (prctl(2))."""
        if not self._others:
            for pid in descendants(self.launcher_pid):
                with contextlib.suppress(ProcessLookupError):
                    self._others = (*self._others, os.pidfd_open(pid))
        self.kill()
        await self.wait()

    async def _end_strays(self) -> None:
        others, self._others = self._others, ()
        try:
            for pidfd in others:
                if await ended(pidfd, PATIENCE_S):
                    continue
                self._end_group()
                if not await ended(pidfd, END_TIMEOUT_S):
                    raise SandboxUnavailable("a process of runsc does not end")
        finally:
            for pidfd in others:
                os.close(pidfd)
        await asyncio.to_thread(shutil.rmtree, self.bundle, ignore_errors=True)


class GvisorSandbox(GuestSandbox):
    """Limits that fit: gVisor's own memory and threads lie in the session's control group too."""

    async def run(self, command: Command, sink: OutputSink) -> Outcome:
        """Run one command.

        gVisor makes what it is handed non-blocking, for everybody who has it open, and a program
        that is handed it again finds it so.
        """
        if command.stdin_fd is not None:
            os.set_blocking(command.stdin_fd, True)
        return await super().run(command, sink)

    def _group_limits(self, limits: ResourceLimits) -> ResourceLimits:
        return group_limits(limits)

    def _group_holds(self) -> frozenset[str]:
        """Inside, RLIMIT_AS comes before the group's limit, which would end the whole sandbox."""
        return super()._group_holds() - {"memory", "pids"}


def group_limits(limits: ResourceLimits) -> ResourceLimits:
    """Return what the control group of a session with these limits is given."""
    return dataclasses.replace(
        limits,
        memory_bytes=limits.memory_bytes + OVERHEAD_BYTES,
        pids=max(HOST_TASKS, limits.pids * 8),
    )


async def _readable_or_ended(fd: int, pidfd: int) -> bool:
    """Whether a descriptor becomes readable before a process ends and the time is over."""
    loop = asyncio.get_running_loop()
    first: asyncio.Future[bool] = loop.create_future()

    def tell(value: bool) -> None:
        if not first.done():
            first.set_result(value)

    watched = os.dup(fd), os.dup(pidfd)
    loop.add_reader(watched[0], tell, True)
    loop.add_reader(watched[1], tell, False)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            return await first
    except TimeoutError:
        return False
    finally:
        for one in watched:
            loop.remove_reader(one)
            os.close(one)
