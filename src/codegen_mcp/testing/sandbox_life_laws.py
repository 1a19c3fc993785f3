"""The laws of ``sandbox/base.py`` about a sandbox: its boot, its neighbours and its end."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.core.task import (
    EndedBy,
)
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.testing.sandbox_rig import WITHIN_S, Ran, Rig, alive, eventually


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
