"""The sandbox of every backend: a guest inside walls, driven over its control socket."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from codegen_mcp.core.errors import InvalidRequest, SandboxUnavailable, WrongState
from codegen_mcp.core.limits import ResourceLimits, Usage
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, Outcome
from codegen_mcp.sandbox.base import VENV, WORKSPACE, FreezeReport, SandboxSpec
from codegen_mcp.sandbox.cgroup import CgroupCounters
from codegen_mcp.sandbox.freezing import Freezer
from codegen_mcp.sandbox.guest_link import BOOT_S, GuestLink
from codegen_mcp.sandbox.guest_protocol import Exited
from codegen_mcp.sandbox.guest_run import KILL_S, GuestRun
from codegen_mcp.sandbox.launch import GuestProcess
from codegen_mcp.sandbox.rlimits import run_rlimits
from codegen_mcp.sandbox.run_environment import base_environment
from codegen_mcp.sandbox.run_request import RunRequest, build_payload
from codegen_mcp.sandbox.spare_mover import SpareMover

ROOM_TRIES, ROOM_WAIT_S = 20, 0.01
"""How long a run's own memory limit may wait for warm imports to be dropped."""


class GuestSandbox:
    """Implements ``Sandbox`` over a launched guest.

    Args:
        process: The guest and its walls; owned from here on.
        spec: What it was launched with.
        workspace: Where the guest sees the workspace; likewise the environment and scratch space.
        venv: See above.
        tmp: See above.
        counted_alone: Whether RLIMIT_NPROC counts this sandbox's processes and no others.
        relay: Whether the guest cannot send descriptors.
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
        relay: bool = False,
    ) -> None:
        self.limits = spec.limits
        self._process = process
        self._spec = spec
        self._workspace, self._venv, self._tmp = workspace, venv, tmp
        self._counted_alone = counted_alone
        self._env: Mapping[str, str] = dict(spec.env)
        self._base: tuple[ResourceLimits, Mapping[str, str]] | None = None
        """The variables of every run, and the limits that they were made for."""
        self._run: GuestRun | None = None
        self._closed = False
        self._freezer = Freezer(process.processes, spec.cgroup)
        self._overdue: GuestRun | None = None
        """A run that should have been killed with everything while all stood still."""
        self._run_groups = SpareMover(spec.cgroup.runs if spec.cgroup is not None else None)
        self._link = GuestLink(
            process,
            self._on_ended,
            egress_port=spec.egress_port,
            relay=relay,
            on_spare=self._run_groups.new_spare,
        )

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
        relay: bool = False,
    ) -> Self:
        """Wait until the first run can be served.

        Raises:
            SandboxUnavailable: It ended or said nothing in time; the caller ends the process.
        """
        sandbox = cls(
            process,
            spec,
            workspace=workspace,
            venv=venv,
            tmp=tmp,
            counted_alone=counted_alone,
            relay=relay,
        )
        try:
            await sandbox._link.wait_for_spare(BOOT_S)
        except BaseException:
            sandbox._link.close()
            raise
        return sandbox

    @property
    def alive(self) -> bool:
        """Whether the next run can be served."""
        return self._link.alive and not self._closed

    @property
    def entrance(self) -> socket.socket | None:
        """Where code inside finds the way out."""
        return self._link.entrance

    async def run(self, command: Command, sink: OutputSink) -> Outcome:
        """Run one command to its end."""
        if not self.alive:
            raise SandboxUnavailable("the sandbox has ended; the session needs a new one")
        if self._run is not None:
            raise WrongState("the sandbox runs something already; one run at a time")
        cgroup, memory = self._spec.cgroup, command.limits.memory_bytes
        if memory is not None:
            own = dataclasses.replace(self.limits, memory_bytes=memory)
            await self._tighten_memory(self._group_limits(own).memory_bytes)
        if cgroup is not None:
            cgroup.reset_peak()
        run = self._run = GuestRun(self, command, sink)
        try:
            payload = self._payload(command)
            with RunRequest(payload, command.stdin, command.stdin_fd) as request:
                run.number = await self._link.send_run(request.payload, request.fds)
            self._run_groups.begin(run.number)
            reply = await run.supervise(request.ends.stdout, request.ends.stderr)
            if reply is None:
                await self._bury()
            return run.outcome(reply)
        finally:
            self._run = None
            self._run_groups.end()
            if memory is not None and cgroup is not None and not self._closed:
                cgroup.set_memory(self._group_limits(self.limits).memory_bytes)

    async def set_environment(self, env: Mapping[str, str]) -> None:
        """Replace the session's variables for the runs to come."""
        self._env = dict(env)

    async def set_limits(self, limits: ResourceLimits) -> None:
        """Rewrite memory, pids and CPU limits."""
        self.limits = limits
        if self._spec.cgroup is not None:
            self._spec.cgroup.set_limits(self._group_limits(limits))

    def moved(self, directory: Path) -> None:
        """Note the new slot directory; what is mounted inside moves with it."""

    async def packages_changed(self) -> None:
        """Drop every warm import."""
        self._link.tell([b"changed"])

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

    async def freeze(self) -> FreezeReport:
        """Stop every process inside."""
        if not self.alive:
            raise SandboxUnavailable("the sandbox has ended; the session needs a new one")
        return await self._freezer.freeze()

    async def thaw(self) -> None:
        """Undo ``freeze``; a guest that could not obey meanwhile gets its time to do so."""
        self._freezer.thaw()
        if self._overdue is not None:
            overdue, self._overdue = self._overdue, None
            asyncio.get_running_loop().call_later(KILL_S, self._kill_overdue, overdue)

    async def aclose(self) -> None:
        """Kill everything inside and return when nothing is left."""
        if not self._closed:
            self._closed = True
            self._link.close()
            await self._bury()
            await self._run_groups.aclose()

    def counters(self) -> CgroupCounters:
        """Read the control group, or /proc where there is none."""
        if self._spec.cgroup is not None:
            return self._spec.cgroup.read()
        pids = self.processes()
        return CgroupCounters(memory_bytes=sum(map(_resident_bytes, pids)), pids=len(pids))

    def disk_full(self) -> bool:
        """Whether the volume is full now."""
        return self._spec.volume.usage().full

    def disk_exceeded(self) -> bool:
        """Whether it holds more than it may."""
        return self._spec.volume.usage().exceeded

    def kill_run(self, number: int) -> None:
        """End what is in the run's group at once, and ask the guest to do the rest."""
        self._run_groups.kill()
        self._link.tell([b"kill", b"%d" % number])

    def kill_all(self) -> None:
        """Kill the sandbox; its end is then seen on the control socket."""
        if self._freezer.wanted:
            self._overdue = self._run
        else:
            self._process.kill()

    def _kill_overdue(self, run: GuestRun) -> None:
        if run is self._run and not self._closed:
            self.kill_all()

    def drop_warm(self) -> None:
        """Ask the guest to let go of warm imports."""
        self._link.tell([b"drop"])

    def _on_ended(self, reply: Exited | None) -> None:
        if self._run is not None and (reply is None or reply.number == self._run.number):
            self._run.ended(reply)

    def _group_limits(self, limits: ResourceLimits) -> ResourceLimits:
        """What the control group is given for a session's limits."""
        return limits

    def _group_holds(self) -> frozenset[str]:
        """Controllers that bound the session's own processes as its limits say."""
        return self._spec.cgroup.controllers if self._spec.cgroup is not None else frozenset()

    def _payload(self, command: Command) -> bytes:
        held = self._group_holds()
        return build_payload(
            command,
            workspace=self._workspace,
            base=self._base_environment(),
            session=self._env,
            rlimits=run_rlimits(
                self.limits,
                command.limits,
                memory_cgroup="memory" in held,
                pids_cgroup="pids" in held,
                counted_alone=self._counted_alone,
            ),
        )

    def _base_environment(self) -> Mapping[str, str]:
        if self._base is None or self._base[0] is not self.limits:
            base = base_environment(
                self._spec.interpreter,
                self.limits,
                workspace=self._workspace,
                venv=self._venv,
                tmp=self._tmp,
            )
            self._base = self.limits, base
        return self._base[1]

    async def _tighten_memory(self, memory: int) -> None:
        """Set a run's own memory limit, making room by dropping warm imports."""
        cgroup = self._spec.cgroup
        if cgroup is None or cgroup.set_memory(memory):
            return
        self.drop_warm()
        for _ in range(ROOM_TRIES):
            await asyncio.sleep(ROOM_WAIT_S)
            if cgroup.set_memory(memory):
                return
        used = cgroup.read().memory_bytes
        raise InvalidRequest(
            f"max_memory_bytes={memory!r} is below what the session uses now ({used} bytes); "
            "ask for more"
        )

    async def _bury(self) -> None:
        self._process.kill()
        self._freezer.thaw()  # what is frozen does not die; what was killed runs no further
        await self._process.wait()


def _resident_bytes(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
