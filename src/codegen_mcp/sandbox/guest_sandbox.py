"""The sandbox of every backend: a guest inside walls, driven over its control socket."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from codegen_mcp.core.errors import InvalidRequest, SandboxUnavailable, WrongState
from codegen_mcp.core.limits import ResourceLimits, Usage
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Argv, Command, Outcome, PythonCode, PythonFile
from codegen_mcp.sandbox.base import VENV, WORKSPACE, SandboxSpec
from codegen_mcp.sandbox.cgroup import CgroupCounters
from codegen_mcp.sandbox.guest.codec import encode
from codegen_mcp.sandbox.guest_protocol import (
    MAX_DATAGRAM,
    Failed,
    GuestProtocolError,
    Ready,
    encode_payload,
    needs_fresh_interpreter,
    parse_reply,
)
from codegen_mcp.sandbox.guest_run import GuestRun
from codegen_mcp.sandbox.launch import GuestProcess
from codegen_mcp.sandbox.rlimits import run_rlimits
from codegen_mcp.sandbox.run_environment import base_environment

BOOT_S = 15.0
"""Longest time from launch to the guest's first word."""


class GuestSandbox:
    """Implements ``Sandbox`` over a launched guest.

    Args:
        process: The guest and its walls; owned from here on.
        spec: What it was launched with.
        workspace: Where the guest sees the workspace; likewise the environment and scratch space.
        venv: See above.
        tmp: See above.
        counted_alone: Whether RLIMIT_NPROC counts this sandbox's processes and no others.
    """

    def __init__(
        self,
        process: GuestProcess,
        spec: SandboxSpec,
        *,
        workspace: str = WORKSPACE,
        venv: str = VENV,
        tmp: str = "/tmp",
        counted_alone: bool = True,
    ) -> None:
        self.limits = spec.limits
        self._process = process
        self._spec = spec
        self._workspace, self._venv, self._tmp = workspace, venv, tmp
        self._counted_alone = counted_alone
        self._env: Mapping[str, str] = dict(spec.env)
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._run: GuestRun | None = None
        self._runs = 0
        self._lost = self._closed = False

    @classmethod
    async def boot(
        cls,
        process: GuestProcess,
        spec: SandboxSpec,
        *,
        workspace: str = WORKSPACE,
        venv: str = VENV,
        tmp: str = "/tmp",
        counted_alone: bool = True,
    ) -> GuestSandbox:
        """Wait for the guest's first word.

        Raises:
            SandboxUnavailable: It ended or said nothing in time. The caller ends the process.
        """
        sandbox = cls(
            process, spec, workspace=workspace, venv=venv, tmp=tmp, counted_alone=counted_alone
        )
        asyncio.get_running_loop().add_reader(process.control, sandbox._on_readable)
        try:
            async with asyncio.timeout(BOOT_S):
                await sandbox._ready
        except BaseException as error:
            sandbox._stop_listening()
            if isinstance(error, TimeoutError):
                raise SandboxUnavailable(f"the guest said nothing for {BOOT_S:.0f} s") from None
            raise
        return sandbox

    @property
    def alive(self) -> bool:
        """Whether the next run can be served."""
        return not self._lost and not self._closed

    async def run(self, command: Command, sink: OutputSink) -> Outcome:
        """Run one command to its end."""
        if not self.alive:
            raise SandboxUnavailable("the sandbox has ended; the session needs a new one")
        if self._run is not None:
            raise WrongState("the sandbox runs something already; one run at a time")
        memory = command.limits.memory_bytes
        if memory is not None:
            await self._tighten_memory(memory)
        if self._spec.cgroup is not None:
            self._spec.cgroup.reset_peak()
        self._runs += 1
        run = self._run = GuestRun(self, self._runs, command, sink)
        try:
            stdout, stderr = self._start(run, command)
            reply = await run.supervise(stdout, stderr)
            if isinstance(reply, Failed):
                raise SandboxUnavailable(f"the run could not be started: {reply.text}")
            if reply is None:
                await self._bury()
            return run.outcome(reply)
        finally:
            self._run = None
            if memory is not None and self._spec.cgroup is not None and not self._closed:
                self._spec.cgroup.set_memory(self.limits.memory_bytes)

    async def set_environment(self, env: Mapping[str, str]) -> None:
        """Replace the session's variables for the runs to come."""
        self._env = dict(env)

    async def set_limits(self, limits: ResourceLimits) -> None:
        """Rewrite memory, pids and CPU limits."""
        self.limits = limits
        if self._spec.cgroup is not None:
            self._spec.cgroup.set_limits(limits)

    def moved(self, directory: Path) -> None:
        """Note the new slot directory; what is mounted inside moves with it."""

    async def packages_changed(self) -> None:
        """Drop every warm import."""
        self._tell([b"changed"])

    def usage(self) -> Usage:
        """Read the kernel's counters now."""
        now = self.counters()
        return Usage(
            memory_bytes=now.memory_bytes,
            memory_peak_bytes=now.memory_peak_bytes,
            cpu_us=now.cpu_us,
            pids=now.pids,
        )

    def processes(self) -> list[int]:
        """Host pids of the sandbox."""
        return [] if self._closed else self._process.processes()

    async def aclose(self) -> None:
        """Kill everything inside and return when nothing is left."""
        if self._closed:
            return
        self._closed = True
        self._stop_listening()
        await self._bury()
        if self._run is not None:
            self._run.ended(None)

    def counters(self) -> CgroupCounters:
        """Read the control group, or /proc where there is none."""
        if self._spec.cgroup is not None:
            return self._spec.cgroup.read()
        pids = self.processes()
        return CgroupCounters(memory_bytes=sum(map(_resident_bytes, pids)), pids=len(pids))

    def disk_full(self) -> bool:
        """Whether the volume is full now."""
        return self._spec.volume.usage().full

    def kill_run(self, number: int) -> None:
        """Ask the guest to end a run."""
        self._tell([b"kill", b"%d" % number])

    def kill_all(self) -> None:
        """Kill the sandbox; its end is then seen on the control socket."""
        self._process.kill()

    def drop_warm(self) -> None:
        """Ask the guest to let go of warm imports."""
        self._tell([b"drop"])

    def _start(self, run: GuestRun, command: Command) -> tuple[int, int]:
        """Send a run to the guest; returns the read ends of its output."""
        payload = self._payload(command)
        with contextlib.ExitStack() as stack:
            stdout, stdout_end = _pipe(stack)
            stderr, stderr_end = _pipe(stack)
            stdin = stack.enter_context(_input(command.stdin))
            body = stack.enter_context(_memfd(payload))
            fds = array.array("i", [stdout_end, stderr_end, stdin, body])
            message = encode([b"run", b"%d" % run.number])
            try:
                self._process.control.sendmsg(
                    [message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
                )
            except OSError as error:
                self._gone()
                os.close(stdout)
                os.close(stderr)
                raise SandboxUnavailable(
                    "the guest is gone; the session needs a new one"
                ) from error
        return stdout, stderr

    def _payload(self, command: Command) -> bytes:
        program, interpreter = command.program, self._spec.interpreter
        places = {"workspace": self._workspace, "venv": self._venv, "tmp": self._tmp}
        base = base_environment(interpreter, self.limits, **places)
        own = {**self._env, **command.env}
        cwd = f"{self._workspace}/{command.cwd}" if command.cwd else self._workspace
        kind, name, args, code = "exec", "", command.args, b""
        match program:
            case PythonCode():
                kind, name, code = "code", program.filename, program.code
            case PythonFile():
                kind, name = "file", program.path
                if command.cwd:
                    name = f"{self._workspace}/{program.path}"
            case Argv():
                args = program.argv
        return encode_payload(
            kind=kind,
            name=name,
            cwd=cwd,
            args=args,
            env={**base, **own},
            limits=run_rlimits(
                self.limits,
                command.limits,
                memory_cgroup=self._spec.cgroup is not None,
                pids_cgroup=self._spec.cgroup is not None,
                counted_alone=self._counted_alone,
            ),
            fresh=needs_fresh_interpreter(own),
            code=code,
        )

    async def _tighten_memory(self, memory: int) -> None:
        """Set a run's own memory limit, making room by dropping warm imports."""
        cgroup = self._spec.cgroup
        if cgroup is None or cgroup.set_memory(memory):
            return
        self.drop_warm()
        for _ in range(20):
            await asyncio.sleep(0.01)
            if cgroup.set_memory(memory):
                return
        used = cgroup.read().memory_bytes
        raise InvalidRequest(
            f"max_memory_bytes={memory!r} is below what the session uses now ({used} bytes); "
            "ask for more"
        )

    def _on_readable(self) -> None:
        """Take what the guest says; anything that ours would not say ends the sandbox."""
        try:
            datagram = self._process.control.recv(MAX_DATAGRAM)
        except BlockingIOError:
            return
        except OSError:
            datagram = b""
        if not datagram:
            self._gone()
            return
        try:
            reply = parse_reply(datagram)
        except GuestProtocolError:
            self._process.kill()
            self._gone()
            return
        if isinstance(reply, Ready):
            if not self._ready.done():
                self._ready.set_result(None)
        elif self._run is not None and reply.run == self._run.number:
            self._run.ended(reply)

    def _gone(self) -> None:
        """Note that the guest is dead."""
        self._lost = True
        self._stop_listening()
        if not self._ready.done():
            self._ready.set_exception(SandboxUnavailable("the guest ended while it was starting"))
        if self._run is not None:
            self._run.ended(None)

    async def _bury(self) -> None:
        self._process.kill()
        await self._process.wait()

    def _stop_listening(self) -> None:
        if self._process.control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._process.control)

    def _tell(self, message: Sequence[bytes]) -> None:
        """Send without waiting; a guest that does not read is taken for dead."""
        if not self.alive:
            return
        try:
            self._process.control.send(encode(list(message)))
        except OSError:
            self._process.kill()
            self._gone()


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, write_end)
    os.set_blocking(read_end, False)
    return read_end, write_end


@contextlib.contextmanager
def _memfd(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("run", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _input(data: bytes) -> Iterator[int]:
    """Standard input: /dev/null, so that a read ends at once, or the bytes and then the end."""
    if data:
        with _memfd(data) as fd:
            yield fd
        return
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _resident_bytes(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
