"""The laws of ``sandbox/base.py`` as a suite for any backend: each is one coroutine function.

A law gets a rig with the backend and asserts; its name says what must hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Self

from codegen_mcp.core.errors import SandboxUnavailable, WrongState
from codegen_mcp.core.limits import MIB, ResourceLimits, RunLimits
from codegen_mcp.core.task import (
    Argv,
    Command,
    EndedBy,
    Outcome,
    Program,
    PythonCode,
    PythonFile,
    Stream,
)
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import HostIdentity, SandboxBackend
from codegen_mcp.sandbox.selftest.bed import LIMITS, Bed, Place

WITHIN_S = 5.0
"""Bound of every wait for a condition."""


@dataclass(slots=True)
class Ran:
    """A run's output as the sink got it."""

    outcome: Outcome | None = None
    parts: list[tuple[Stream, bytes]] = field(default_factory=list)
    omitted: dict[Stream, int] = field(default_factory=dict)
    printed: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False
    """Make the sink raise."""

    async def write(self, stream: Stream, data: bytes) -> None:
        """Keep everything."""
        if self.fails:
            raise ConnectionError("the reader is gone")
        assert 1 <= len(data) <= 65536
        self.parts.append((stream, data))
        self.printed.set()

    def omit(self, stream: Stream, count: int) -> None:
        """Sum up."""
        self.omitted[stream] = self.omitted.get(stream, 0) + count

    @property
    def stdout(self) -> bytes:
        """All of it."""
        return b"".join(data for stream, data in self.parts if stream is Stream.STDOUT)

    @property
    def stderr(self) -> bytes:
        """All of it."""
        return b"".join(data for stream, data in self.parts if stream is Stream.STDERR)

    @property
    def end(self) -> Outcome:
        """The outcome of a run that has ended."""
        assert self.outcome is not None
        return self.outcome


class Rig:
    """One backend with a bed for its sandboxes."""

    def __init__(
        self, backend: SandboxBackend, config: BackendConfig, identities: Sequence[HostIdentity]
    ) -> None:
        self.backend = backend
        self.config = config
        self.bed = Bed(backend, config, with_volumes=False)
        self._users: Iterator[HostIdentity | None] = cycle([*identities] or [None])

    async def __aenter__(self) -> Self:
        await self.bed.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.bed.__aexit__(kind, error, trace)

    async def place(self, limits: ResourceLimits = LIMITS) -> Place:
        """Boot a sandbox of its own user; the bed removes it."""
        return await self.bed.place(next(self._users), limits)

    async def run(
        self,
        place: Place,
        program: Program | str,
        *,
        ran: Ran | None = None,
        limits: RunLimits | None = None,
        args: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        cwd: str = "",
    ) -> Ran:
        """Run to the end."""
        ran = ran or Ran()
        command = Command(
            program=PythonCode(program.encode()) if isinstance(program, str) else program,
            limits=limits or RunLimits(timeout_s=20, output_bytes=8 * MIB),
            args=args,
            env=env or {},
            stdin=stdin,
            cwd=cwd,
        )
        ran.outcome = await place.sandbox.run(command, ran)
        return ran


async def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


async def bytes_arrive_exactly(rig: Rig) -> None:
    """Both streams, apart, in order, whatever the bytes."""
    place = await rig.place()
    code = """
import os
for i in range(40):
    os.write(1, bytes(range(256)) * 40)
    os.write(2, bytes([i]) * 1000)
"""
    ran = await rig.run(place, code)
    assert ran.stdout == bytes(range(256)) * 1600
    assert ran.stderr == b"".join(bytes([i]) * 1000 for i in range(40))
    assert not ran.omitted
    assert ran.end.ended_by is EndedBy.EXIT


async def exit_codes_are_those_of_the_program(rig: Rig) -> None:
    """0, others, text, an exception."""
    place = await rig.place()
    for code, expected in (
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os._exit(255)", 255),
        ("raise SystemExit('why')", 1),
        ("1/0", 1),
    ):
        ran = await rig.run(place, code)
        assert (ran.end.ended_by, ran.end.exit_code) == (EndedBy.EXIT, expected), code
    assert b"ZeroDivisionError" in ran.stderr


async def signals_are_named(rig: Rig) -> None:
    """128 + n, and the signal itself."""
    place = await rig.place()
    for number in (6, 9, 11, 15):
        ran = await rig.run(place, f"import os; os.kill(os.getpid(), {number}); input()")
        assert ran.end.ended_by is EndedBy.SIGNAL
        assert (ran.end.signal, ran.end.exit_code) == (number, 128 + number)


async def a_timeout_ends_the_run_and_keeps_what_was_printed(rig: Rig) -> None:
    """124, in time, with the output until then, and the next run is served."""
    place = await rig.place()
    code = "print('before', flush=True)\nwhile True: pass"
    begun = time.monotonic()
    ran = await rig.run(place, code, limits=RunLimits(timeout_s=0.5, output_bytes=MIB))
    assert ran.end.ended_by is EndedBy.TIMEOUT
    assert ran.end.exit_code == 124
    assert ran.stdout == b"before\n"
    assert 0.5 <= time.monotonic() - begun < 4
    assert (await rig.run(place, "print('next')")).stdout == b"next\n"


async def too_much_output_ends_the_run_and_is_counted(rig: Rig) -> None:
    """What is over the limit is not delivered, and not lost from the count."""
    place = await rig.place()
    code = "import os\nwhile True: os.write(1, b'x' * 65536)"
    ran = await rig.run(place, code, limits=RunLimits(timeout_s=20, output_bytes=200_000))
    assert ran.end.ended_by is EndedBy.OUTPUT
    assert len(ran.stdout) == 200_000
    assert ran.omitted[Stream.STDOUT] > 0


async def a_cpu_budget_ends_the_run(rig: Rig) -> None:
    """Counted by the control group, else by an rlimit, which looks like a signal."""
    place = await rig.place()
    limits = RunLimits(timeout_s=20, output_bytes=MIB, cpu_s=0.3)
    ran = await rig.run(place, "while True: pass", limits=limits)
    counted = rig.config.cgroups is not None
    assert ran.end.ended_by in ((EndedBy.CPU,) if counted else (EndedBy.CPU, EndedBy.SIGNAL))
    assert (await rig.run(place, "print(1)")).end.exit_code == 0


async def what_a_run_leaves_behind_is_killed_and_counted(rig: Rig) -> None:
    """A daemon in a session of its own, and a child that holds the output open."""
    place = await rig.place()
    await rig.run(place, "pass")
    await eventually(lambda: len(place.sandbox.processes()) <= 4, "settled")
    before = set(place.sandbox.processes())
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
if os.fork() == 0:
    time.sleep(600)
print(1)
"""
    ran = await rig.run(place, code)
    assert ran.end.exit_code == 0
    assert ran.end.leftovers >= 2
    assert ran.stdout == b"1\n"
    await eventually(
        lambda: len(set(place.sandbox.processes()) - before) <= 1, "only a new spare is there"
    )


async def a_cancelled_run_leaves_nothing(rig: Rig) -> None:
    """CancelledError comes after the end of every process of it."""
    place = await rig.place()
    ran = Ran()
    code = "import os, time\nos.fork()\nprint(1, flush=True)\ntime.sleep(600)"
    running = asyncio.ensure_future(rig.run(place, code, ran=ran))
    await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
    during = set(place.sandbox.processes())
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()
    left = {pid for pid in place.sandbox.processes() if alive(pid)}
    assert len(left & during) <= len(during) - 2
    assert place.sandbox.alive
    assert (await rig.run(place, "print(2)")).stdout == b"2\n"


async def a_run_whose_sink_fails_leaves_nothing(rig: Rig) -> None:
    """The error is the sink's, and the sandbox serves the next run."""
    place = await rig.place()
    code = "import os, time\nos.fork()\nprint(1, flush=True)\ntime.sleep(600)"
    limits = RunLimits(timeout_s=1, output_bytes=MIB)
    try:
        await asyncio.wait_for(rig.run(place, code, ran=Ran(fails=True), limits=limits), 10)
    except ConnectionError:
        pass
    else:
        raise AssertionError("the sink's error was swallowed")
    assert (await rig.run(place, "print(2)")).stdout == b"2\n"


async def stdin_is_what_was_given_and_then_ends(rig: Rig) -> None:
    """All bytes, also none."""
    place = await rig.place()
    data = bytes(range(256)) * 1000
    code = "import sys, hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    ran = await rig.run(place, code, stdin=data)
    import hashlib

    assert ran.stdout.decode().strip() == hashlib.sha256(data).hexdigest()
    assert (await rig.run(place, "import sys; print(repr(sys.stdin.read()))")).stdout == b"''\n"


async def arguments_environment_and_directory_arrive(rig: Rig) -> None:
    """As given, and nothing of the worker's."""
    os.environ["WORKER_SECRET_FOR_TEST"] = "do not pass on"
    try:
        place = await rig.place()
        await rig.run(place, "import os; os.makedirs('sub/deep', exist_ok=True)")
        await place.sandbox.set_environment({"SESSION": "yes", "BOTH": "session"})
        code = """
import os, sys
print(sys.argv[1:], os.environ.get("SESSION"), os.environ["BOTH"], os.environ["OWN"],
      os.getcwd().endswith("sub/deep"), "WORKER_SECRET_FOR_TEST" in os.environ)
"""
        ran = await rig.run(
            place, code, args=("a b", "ü"), env={"OWN": "1", "BOTH": "run"}, cwd="sub/deep"
        )
        expected = "['a b', 'ü'] yes run 1 True False\n"
        assert ran.stdout.decode() == expected, ran.stderr
    finally:
        del os.environ["WORKER_SECRET_FOR_TEST"]


async def files_and_programs_run(rig: Rig) -> None:
    """A file of the workspace, a program on the PATH, one that does not exist."""
    place = await rig.place()
    await rig.run(place, "open('job.py', 'w').write('import sys; print(sys.argv)')")
    ran = await rig.run(place, PythonFile("job.py"), args=("x",))
    assert ran.stdout == b"['job.py', 'x']\n", ran.stderr
    ran = await rig.run(place, Argv(("sh", "-c", "echo $HOME >&2; exit 7")))
    assert ran.end.exit_code == 7
    assert ran.stderr.strip()
    ran = await rig.run(place, Argv(("no-such-program-here",)))
    assert ran.end.exit_code == 127


async def each_run_is_a_fresh_process_on_the_same_files(rig: Rig) -> None:
    """Variables go, files stay, and they lie in the volume."""
    place = await rig.place()
    await rig.run(place, "import builtins; builtins.kept = 1; open('kept.txt', 'w').write('k')")
    ran = await rig.run(
        place, "import builtins; print(hasattr(builtins, 'kept'), open('kept.txt').read())"
    )
    assert ran.stdout == b"False k\n"
    assert (place.spec.volume.root / "workspace" / "kept.txt").read_text() == "k"


async def one_run_at_a_time(rig: Rig) -> None:
    """A second one is refused while the first runs."""
    place = await rig.place()
    ran = Ran()
    first = asyncio.ensure_future(
        rig.run(place, "print(1, flush=True); import time; time.sleep(600)", ran=ran)
    )
    await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
    try:
        await rig.run(place, "print(2)")
    except WrongState:
        pass
    else:
        raise AssertionError("two runs at once")
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def a_guest_that_dies_loses_the_sandbox(rig: Rig) -> None:
    """The run ends as WORKER_LOST, what was printed is kept, later runs are refused."""
    place = await rig.place()
    ran = Ran()
    running = asyncio.ensure_future(
        rig.run(place, "print(1, flush=True); import time; time.sleep(600)", ran=ran)
    )
    await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
    inside = place.sandbox.processes()
    os.kill(place.sandbox._process.guest_pid, 9)  # type: ignore[attr-defined]
    await asyncio.wait_for(running, 10)
    assert ran.end.sandbox_lost
    assert ran.end.ended_by is EndedBy.WORKER_LOST
    assert ran.stdout == b"1\n"
    assert not place.sandbox.alive
    await eventually(lambda: not any(map(alive, inside)), "everything inside is dead")
    try:
        await rig.run(place, "print(2)")
    except SandboxUnavailable:
        pass
    else:
        raise AssertionError("a lost sandbox served a run")
    await place.reboot()
    assert (await rig.run(place, "print(3)")).stdout == b"3\n"


async def closing_leaves_nothing(rig: Rig) -> None:
    """Also in the middle of a run; twice is once."""
    place = await rig.place()
    ran = Ran()
    code = "import os, time\nos.fork()\nprint(1, flush=True)\ntime.sleep(600)"
    running = asyncio.ensure_future(rig.run(place, code, ran=ran))
    await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
    inside = place.sandbox.processes()
    assert len(inside) >= 3
    await place.sandbox.aclose()
    assert not any(map(alive, inside))
    await asyncio.gather(running, return_exceptions=True)
    await place.sandbox.aclose()
    assert place.sandbox.processes() == []
    assert not place.sandbox.alive


async def sandboxes_do_not_see_each_other(rig: Rig) -> None:
    """Two at once: files, processes and signals of one are nothing to the other."""
    one, two = await rig.place(), await rig.place()
    ran = Ran()
    code = "open('mine.txt', 'w').write('1'); print(1, flush=True); import time; time.sleep(600)"
    running = asyncio.ensure_future(rig.run(one, code, ran=ran))
    await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
    theirs = one.sandbox.processes()
    assert not set(theirs) & set(two.sandbox.processes())
    attack = f"""
import os
seen = os.listdir(".")
for pid in {theirs!r}:
    try:
        os.kill(pid, 9)
        seen.append(pid)
    except OSError:
        pass
try:
    seen += os.listdir({str(one.spec.volume.root / "workspace")!r})
except OSError:
    pass
print(seen)
"""
    assert (await rig.run(two, attack)).stdout == b"[]\n"
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await rig.run(one, "print(open('mine.txt').read())")).stdout == b"1\n"


async def a_boot_that_fails_leaves_nothing(rig: Rig) -> None:
    """It says why, and no process of it is there."""
    place = await rig.place()
    bad = replace(
        place.spec,
        sandbox_id="bad",
        interpreter=replace(place.spec.interpreter, template=Path("/nonexistent")),
    )
    before = set(place.sandbox.processes())
    try:
        await rig.backend.create(bad)
    except SandboxUnavailable as error:
        said = error.message
    else:
        raise AssertionError("booted without an interpreter")
    assert "nonexistent" in said or "launcher" in said or "ended" in said, said
    assert {pid for pid in place.sandbox.processes() if alive(pid)} <= before


async def a_cancelled_boot_leaves_nothing(rig: Rig) -> None:
    """At whatever moment the cancel comes."""
    place = await rig.place()
    await place.sandbox.aclose()
    fds = len(os.listdir("/proc/self/fd"))
    for wait_s in (0.0, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02):
        booting = asyncio.ensure_future(rig.backend.create(place.spec))
        await asyncio.wait([booting], timeout=wait_s)
        booting.cancel()
        await asyncio.gather(booting, return_exceptions=True)
        if not booting.cancelled() and booting.exception() is None:
            await booting.result().aclose()
    assert len(os.listdir("/proc/self/fd")) == fds
    if (cgroup := place.spec.cgroup) is not None:
        await eventually(lambda: not cgroup.pids(), "the group is empty")
    await place.reboot()
    assert (await rig.run(place, "print(1)")).stdout == b"1\n"


async def nothing_accumulates(rig: Rig) -> None:
    """Descriptors and children of the worker after several sandboxes are as before."""
    place = await rig.place()
    await rig.run(place, "pass")
    await place.sandbox.aclose()
    fds = sorted(os.listdir("/proc/self/fd"))
    for _ in range(4):
        await place.reboot()
        await rig.run(place, "print(1)")
        await place.sandbox.aclose()
    assert len(os.listdir("/proc/self/fd")) == len(fds)


async def usage_is_read_while_a_run_goes_on(rig: Rig) -> None:
    """At least memory and processes, whoever counts them."""
    place = await rig.place()
    ran = Ran()
    code = "b = bytearray(40 << 20); print(1, flush=True); import time; time.sleep(600)"
    running = asyncio.ensure_future(rig.run(place, code, ran=ran))
    await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
    usage = place.sandbox.usage()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert usage.memory_bytes > 40 << 20
    assert usage.pids >= 2


async def a_worker_that_is_root_never_runs_code_as_itself(rig: Rig) -> None:
    """Without an identity, or with root's, a boot is refused."""
    place = await rig.place()
    if os.geteuid() == 0:
        for identity in (None, HostIdentity(uid=0, gid=0), HostIdentity(uid=5, gid=0)):
            try:
                await rig.backend.create(replace(place.spec, identity=identity))
            except SandboxUnavailable:
                continue
            raise AssertionError(f"booted as {identity!r}")
    else:
        try:
            await rig.backend.create(
                replace(place.spec, identity=HostIdentity(uid=12345, gid=12345))
            )
        except SandboxUnavailable:
            pass
        else:
            raise AssertionError("booted as somebody else")
    ran = await rig.run(place, "import os; print(os.getuid() != 0 and os.getgid() != 0)")
    assert ran.stdout == b"True\n"


Law = Callable[[Rig], Awaitable[None]]

LAWS: Sequence[Law] = (
    bytes_arrive_exactly,
    exit_codes_are_those_of_the_program,
    signals_are_named,
    a_timeout_ends_the_run_and_keeps_what_was_printed,
    too_much_output_ends_the_run_and_is_counted,
    a_cpu_budget_ends_the_run,
    what_a_run_leaves_behind_is_killed_and_counted,
    a_cancelled_run_leaves_nothing,
    a_run_whose_sink_fails_leaves_nothing,
    stdin_is_what_was_given_and_then_ends,
    arguments_environment_and_directory_arrive,
    files_and_programs_run,
    each_run_is_a_fresh_process_on_the_same_files,
    one_run_at_a_time,
    a_guest_that_dies_loses_the_sandbox,
    closing_leaves_nothing,
    sandboxes_do_not_see_each_other,
    a_boot_that_fails_leaves_nothing,
    a_cancelled_boot_leaves_nothing,
    nothing_accumulates,
    usage_is_read_while_a_run_goes_on,
    a_worker_that_is_root_never_runs_code_as_itself,
)
