"""A guest from its launch to its end, the same for every backend.

pidfd_open(2): a pidfd keeps meaning the same process, whatever happens to its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox.base import HostIdentity, SandboxSpec
from codegen_mcp.sandbox.cgroup import Cgroup
from codegen_mcp.sandbox.launch_arguments import Arguments
from codegen_mcp.sandbox.launcher import (
    ENVIRONMENT,
    ErrorPipe,
    Spawner,
    descendants,
    ended,
    entry,
    is_stopped,
    outlast,
    parent_of,
)

START_TIMEOUT_S = 10.0
"""Milliseconds are usual; a machine that swaps may take longer."""
END_TIMEOUT_S = 10.0
_REPORT_BYTES = 4096
_STOP_TRIES = 500
PATIENCE_S = 1.0
"""After this long the control group is thawed (a frozen process cannot die) and killed."""


class LaunchedGuest:
    """Implements ``GuestProcess`` for a launcher that has the guest as its only child."""

    environment: Mapping[str, str] = ENVIRONMENT
    """The launcher's."""
    control_is_stdin = False
    """Whether the launcher gets the guest's end of the control socket as its standard input."""

    def __init__(
        self,
        *,
        control: socket.socket,
        launcher: subprocess.Popen[bytes],
        spawner: Spawner,
        errors: ErrorPipe,
        spec: SandboxSpec,
    ) -> None:
        self.errors = errors
        self._control = control
        self._launcher = launcher
        self._spawner = spawner  # its thread is the parent that the launcher must outlive never
        self._spec = spec
        self._cgroup: Cgroup | None = spec.cgroup
        self._launcher_pidfd = os.pidfd_open(launcher.pid)
        self._guest_pid = 0
        self._guest_pidfd = -1
        self._over = False
        self._ending = asyncio.Lock()

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
        if not self._is_ours(pid):
            os.close(pidfd)
            return False
        self._guest_pid, self._guest_pidfd = pid, pidfd
        return True

    def _is_ours(self, pid: int) -> bool:
        return parent_of(pid) == self._launcher.pid

    async def learn_pid(self, report: int) -> None:
        """Learn the guest's pid from what the launcher reports.

        Raises:
            SandboxUnavailable: There is no guest, with the launcher's own words; nothing is left.
        """
        await _learn_pid(self, report)

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

    async def abandon(self) -> None:
        """Kill and wait, also when the guest's pid was never learnt.

        A bubblewrap that is killed while its child waits for it leaves the child waiting for
        ever, so the child is found first: a stopped launcher makes no other.
        """
        if self._guest_pid == 0 and not self._over:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._launcher_pidfd, signal.SIGSTOP)
            for _ in range(_STOP_TRIES):
                if is_stopped(self._launcher.pid):
                    break
                await asyncio.sleep(0.001)
            for pid in descendants(self._launcher.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.kill()
        await self.wait()

    async def wait(self) -> None:
        """Return when nothing is left.

        An init is waited for by the kernel's own rule: it does not end before every other
        process of its namespace has (pid_namespaces(7)).

        Raises:
            SandboxUnavailable: Something still lives after 10 s.
        """
        async with self._ending:
            if not self._over:
                await self._wait_once()

    async def _wait_once(self) -> None:
        if not await self._both_ended(PATIENCE_S):
            self._end_group()
            if not await self._both_ended(END_TIMEOUT_S - PATIENCE_S):
                raise SandboxUnavailable(
                    f"processes {self.processes()[:10]!r} of a sandbox do not end; look at their "
                    "state in /proc/PID/stack"
                )
        await self._end_strays()
        self._launcher.wait()
        self._over = True
        for pidfd in (self._guest_pidfd, self._launcher_pidfd):
            if pidfd >= 0:
                os.close(pidfd)
        self._guest_pidfd = self._launcher_pidfd = -1
        self.errors.close()
        self._control.close()

    def _end_group(self) -> None:
        if self._cgroup is not None:
            self._cgroup.thaw()
            self._cgroup.kill()

    async def _end_strays(self) -> None:
        """End what outlived guest and launcher; a namespace leaves nothing to be done here."""

    async def _both_ended(self, timeout_s: float) -> bool:
        for pidfd in (self._launcher_pidfd, self._guest_pidfd):
            if pidfd >= 0 and not await ended(pidfd, timeout_s):
                return False
        return True


_Guest = TypeVar("_Guest", bound=LaunchedGuest)
_Sandbox = TypeVar("_Sandbox")
MakeCommand = Callable[[Arguments, int, int], list[str]]
"""(descriptors to fill, guest's control descriptor, report descriptor) to the command."""


async def launch(
    spawner: Spawner,
    spec: SandboxSpec,
    make_command: MakeCommand,
    kind: type[_Guest],
    prepare: Callable[[_Guest], None] | None = None,
    identity: HostIdentity | None = None,
) -> _Guest:
    """Start a launcher and learn the guest's pid from its report.

    Args:
        spawner: Starts it.
        spec: The sandbox.
        make_command: Says how.
        kind: What the started guest is.
        prepare: Is given the guest before anything of it can fail.
        identity: The launcher's user, where that is not the session's.

    Raises:
        SandboxUnavailable: It did not start, with the launcher's own words; nothing is left.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    report, report_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    errors = ErrorPipe()
    guest: _Guest | None = None
    try:
        with theirs, Arguments() as arguments, contextlib.ExitStack() as closing:
            closing.callback(os.close, report_fd)
            stdin = theirs.fileno() if kind.control_is_stdin else subprocess.DEVNULL
            command = make_command(arguments, theirs.fileno(), report_fd)
            attach_files = spec.cgroup.attach_files if spec.cgroup is not None else ()
            spawning = spawner.spawn(
                entry(command, identity=identity or spec.identity, attach_files=attach_files),
                pass_fds=(
                    *arguments.fds,
                    report_fd,
                    *(() if kind.control_is_stdin else (theirs.fileno(),)),
                ),
                stdin=stdin,
                stderr=errors.write_end,
                env=kind.environment,
            )
            cancelled = await outlast(spawning)
        errors.close_write_end()
        process = spawning.result()
        guest = kind(control=ours, launcher=process, spawner=spawner, errors=errors, spec=spec)
        if prepare is not None:
            prepare(guest)
        if cancelled:
            raise asyncio.CancelledError
        await guest.learn_pid(report)
    except BaseException as error:
        if guest is not None:
            await end_guest(guest)
        ours.close()
        errors.close()
        if isinstance(error, OSError):
            raise SandboxUnavailable(f"the launcher cannot be started: {error}") from error
        raise
    finally:
        os.close(report)
    return guest


async def or_end(booting: Awaitable[_Sandbox], guest: LaunchedGuest) -> _Sandbox:
    """Wait for a guest's sandbox to come up; when it does not, end the guest.

    Raises:
        SandboxUnavailable: It did not come up, with the launcher's own words; nothing is left.
    """
    try:
        return await booting
    except BaseException as error:
        await end_guest(guest)
        if isinstance(error, SandboxUnavailable):
            raise SandboxUnavailable(explain(error.message, guest.errors)) from error
        raise


async def _learn_pid(guest: LaunchedGuest, report: int) -> None:
    """Read the launcher's report, which arrives in pieces and ends with a newline.

    bubblewrap exits with 1 both for a failed set-up and for a command that did so; only a report
    says that there was a command.
    """
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await _read_line(report)
    except TimeoutError:
        raise SandboxUnavailable(
            f"the launcher started no process within {START_TIMEOUT_S:.0f} s"
        ) from None
    try:
        pid = int(json.loads(line)["child-pid"])
    except (ValueError, KeyError, TypeError):
        await end_guest(guest)
        raise SandboxUnavailable(explain("the launcher failed", guest.errors)) from None
    if not guest.found_guest(pid):
        await end_guest(guest)
        raise SandboxUnavailable(explain("the sandbox ended at once", guest.errors))


async def _read_line(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    line = b""
    try:
        while b"\n" not in line and len(line) < _REPORT_BYTES:
            await readable.wait()
            readable.clear()
            with contextlib.suppress(BlockingIOError):
                part = os.read(fd, _REPORT_BYTES)
                if not part:
                    break
                line += part
    finally:
        loop.remove_reader(fd)
    return line.partition(b"\n")[0]


async def end_guest(guest: LaunchedGuest) -> None:
    """Kill, and wait even when cancelled meanwhile."""
    ending = asyncio.ensure_future(guest.abandon())
    cancelled = await outlast(ending)
    ending.result()
    if cancelled:
        raise asyncio.CancelledError


def explain(what: str, errors: ErrorPipe) -> str:
    """Add the launcher's own words."""
    said = errors.text()
    return f"{what}: {said}" if said else what
