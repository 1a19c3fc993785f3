"""One run, supervised from outside: time, output, CPU and memory, and what ended it.

The guest starts the program and reports its wait status. Everything that decides lies here: the
worker's clock, its count of the bytes, and the kernel's counters of the control group.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from signal import SIGXFSZ
from typing import Protocol

from codegen_mcp.core.limits import ResourceLimits, Usage
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, EndedBy, Outcome, Stream
from codegen_mcp.sandbox.cgroup import CgroupCounters
from codegen_mcp.sandbox.guest_protocol import Exited
from codegen_mcp.sandbox.output_pump import OutputBudget, OutputPump
from codegen_mcp.sandbox.verdict import Evidence, decide

BRIEF_S = 0.004
"""How long a run may go on before its output is followed live."""
POLL_S = 0.1
"""How often counters are read while a program runs; short runs are never polled."""
KILL_S = 1.0
"""A guest that has not ended a run after this long is killed with its namespace."""
DRAIN_S = 10.0
"""How long a sink may take for the last bytes after the end; then they are counted as omitted."""
PRESSURE = 0.8
"""Share of the memory limit above which warm imports are dropped."""


class RunHost(Protocol):
    """What a run needs of its sandbox."""

    limits: ResourceLimits

    def counters(self) -> CgroupCounters:
        """Read the control group; zeros where there is none."""

    def disk_full(self) -> bool:
        """Whether the volume is full now."""

    def disk_exceeded(self) -> bool:
        """Whether it holds more than it may, which nothing but the end of the run stops."""

    def kill_run(self, number: int) -> None:
        """Ask the guest to end the run."""

    def kill_all(self) -> None:
        """Kill the whole sandbox."""

    def drop_warm(self) -> None:
        """Ask the guest to let go of warm imports."""


class GuestRun:
    """A run from its start to its outcome."""

    def __init__(self, host: RunHost, command: Command, sink: OutputSink) -> None:
        self.number = 0
        """That of the spare which became it; 0 until it is sent."""
        self._host = host
        self._command = command
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[Exited | None] = self._loop.create_future()
        self._brief: asyncio.Future[None] | None = None
        self._our_kill: EndedBy | None = None
        self._disk_full = False
        self._pressure_told = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._before = host.counters()
        self._started = time.monotonic()

    def ended(self, reply: Exited | None) -> None:
        """Take the guest's report; None when the sandbox is gone."""
        if not self._end.done():
            self._end.set_result(reply)
        self._end_brief()

    async def supervise(self, stdout: int, stderr: int) -> Exited | None:
        """Pump output and watch limits until the run is over; closes both descriptors.

        Raises:
            asyncio.CancelledError: After the run was killed and nothing of it is left.
        """
        limits = self._command.limits
        budget = OutputBudget(limits.output_bytes, lambda: self._stop(EndedBy.OUTPUT))
        pumps = [
            OutputPump(stdout, Stream.STDOUT, self._sink, budget),
            OutputPump(stderr, Stream.STDERR, self._sink, budget),
        ]
        self._after("deadline", limits.timeout_s, lambda: self._stop(EndedBy.TIMEOUT))
        self._after("poll", POLL_S, self._poll)
        tasks: list[asyncio.Task[None]] = []
        try:
            cancelled = not await self._wait_briefly()
            if not self._end.done():
                tasks += [self._loop.create_task(pump.run()) for pump in pumps]
                cancelled |= not await self._wait()
            # Every writer is dead, so both pipes end; only a sink that waits can hold this up.
            if tasks:
                await asyncio.wait(tasks, timeout=DRAIN_S)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_S):
                        for pump in pumps:
                            await pump.run()
                # What was printed can be on its way to the reader while the outcome is made out.
                await asyncio.sleep(0)
            if cancelled:
                raise asyncio.CancelledError
            for task in tasks:
                if task.done():
                    task.result()
            return self._end.result()
        finally:
            for timer in self._timers.values():
                timer.cancel()
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.gather(*tasks, return_exceptions=True)
            for pump in pumps:
                pump.count_rest()
            os.close(stdout)
            os.close(stderr)

    async def _wait_briefly(self) -> bool:
        """Wait for an end that comes at once; False when the caller cancelled meanwhile.

        Most runs are over before their output is worth wake-ups of its own: it is then read in one
        go. Output of a longer run is late by this much once.
        """
        self._brief = self._loop.create_future()
        self._after("brief", BRIEF_S, self._end_brief)
        try:
            await self._brief
        except asyncio.CancelledError:
            self._stop(EndedBy.CANCELLED)
            return False
        return True

    def _end_brief(self) -> None:
        if self._brief is not None and not self._brief.done():
            self._brief.set_result(None)

    async def _wait(self) -> bool:
        """Wait for the end, however long; False when the caller cancelled meanwhile."""
        cancelled = False
        while not self._end.done():
            try:
                await asyncio.shield(self._end)
            except asyncio.CancelledError:
                cancelled = True
                self._stop(EndedBy.CANCELLED)
        return not cancelled

    def outcome(self, reply: Exited | None) -> Outcome:
        """Decide how the run ended."""
        after = self._host.counters()
        duration_s = time.monotonic() - self._started
        cpu_us = max(0, after.cpu_us - self._before.cpu_us)
        status = reply.wait_status if reply is not None else None
        self._disk_full |= self._host.disk_full()
        verdict = decide(
            Evidence(
                wait_status=status,
                our_kill=self._our_kill,
                before=self._before,
                after=after,
                disk_full=self._disk_full,
                limits=self._host.limits,
                run_limits=self._command.limits,
                file_size_signal=status is not None and status & 0x7F == SIGXFSZ,
            )
        )
        return Outcome(
            ended_by=verdict.ended_by,
            exit_code=verdict.exit_code,
            signal=verdict.signal,
            limits_hit=verdict.limits_hit,
            remedy=verdict.remedy,
            duration_s=duration_s,
            peak=Usage(
                memory_bytes=after.memory_bytes,
                memory_peak_bytes=after.memory_peak_bytes,
                cpu_millicores=round(cpu_us / duration_s / 1000),
                cpu_us=cpu_us,
                pids=after.pids,
            ),
            leftovers=reply.leftovers if reply is not None else 0,
            sandbox_lost=reply is None,
        )

    def _after(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        self._timers[name] = self._loop.call_later(seconds, call)

    def _stop(self, cause: EndedBy | None) -> None:
        """End the run; the first cause stays."""
        if self._end.done():
            return
        if self._our_kill is None:
            self._our_kill = cause
        if "guard" not in self._timers:
            self._after("guard", KILL_S, self._host.kill_all)
            self._host.kill_run(self.number)

    def _poll(self) -> None:
        """Compare counters with limits; an out-of-memory kill ends the whole run."""
        if self._end.done():
            return
        with contextlib.suppress(OSError):
            now, before, limits = self._host.counters(), self._before, self._command.limits
            self._disk_full |= self._host.disk_full()
            if now.oom_kills + now.parent_oom_kills > before.oom_kills + before.parent_oom_kills:
                self._stop(None)
            elif limits.cpu_s and now.cpu_us - before.cpu_us >= limits.cpu_s * 1e6:
                self._stop(EndedBy.CPU)
            elif self._host.disk_exceeded():
                self._stop(EndedBy.DISK)
            memory = limits.memory_bytes or self._host.limits.memory_bytes
            if now.memory_bytes > PRESSURE * memory and not self._pressure_told:
                self._pressure_told = True
                self._host.drop_warm()
        self._after("poll", POLL_S, self._poll)
