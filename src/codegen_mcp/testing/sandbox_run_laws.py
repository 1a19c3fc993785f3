"""The laws of ``sandbox/base.py`` about one run: its input, its output and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

from codegen_mcp.core.errors import SandboxUnavailable, WrongState
from codegen_mcp.core.limits import MIB, RunLimits
from codegen_mcp.core.task import (
    Argv,
    EndedBy,
    PythonFile,
    Stream,
)
from codegen_mcp.testing.sandbox_rig import WITHIN_S, Ran, Rig, alive, eventually


async def bytes_arrive_exactly(rig: Rig) -> None:
    """Both streams, apart, in order, whatever the bytes."""
    place = await rig.place()
    code = """
import os
def put(fd, data):
    while data:  # gVisor may take a part of what is longer than PIPE_BUF
        data = data[os.write(fd, data):]
for i in range(40):
    put(1, bytes(range(256)) * 40)
    put(2, bytes([i]) * 1000)
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
    if rig.one_to_one:
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
    if rig.one_to_one:
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
    assert len(left & during) <= len(during) - 2 or not rig.one_to_one
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


async def stdin_can_be_written_while_the_run_reads_it(rig: Rig) -> None:
    """A pipe: what is written arrives at once, and its end is the end of file."""
    place = await rig.place()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    ran = Ran()
    code = """
import os
while data := os.read(0, 65536):
    print(len(data), flush=True)
print("end", flush=True)
"""
    try:
        running = asyncio.ensure_future(rig.run(place, code, ran=ran, stdin_fd=read_end))
        try:
            for count in (1, 1000, 7):
                ran.printed.clear()
                os.write(write_end, bytes(count))
                await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
        finally:
            os.close(write_end)
            await running
    finally:
        os.close(read_end)
    assert ran.stdout.split() == [b"1", b"1000", b"7", b"end"]
    assert ran.end.ended_by is EndedBy.EXIT


async def a_descriptor_given_as_stdin_stays_its_callers(rig: Rig) -> None:
    """It is open afterwards, also when the run read a part, was killed or never began."""
    place = await rig.place()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        os.write(write_end, b"one two")
        ran = await rig.run(place, "import os; print(os.read(0, 3))", stdin_fd=read_end)
        assert ran.stdout == b"b'one'\n"
        limits = RunLimits(timeout_s=0.3, output_bytes=MIB)
        code = "import os; os.read(0, 2); os.read(0, 2); os.read(0, 100)"
        ran = await rig.run(place, code, limits=limits, stdin_fd=read_end)
        assert ran.end.ended_by is EndedBy.TIMEOUT
        await place.sandbox.aclose()
        try:
            await rig.run(place, "pass", stdin_fd=read_end)
        except SandboxUnavailable:
            pass
        else:
            raise AssertionError("a closed sandbox ran something")
        os.write(write_end, b"rest")
        assert os.read(read_end, 100) == b"rest", "no other reader is left"
    finally:
        os.close(read_end)
        os.close(write_end)


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
