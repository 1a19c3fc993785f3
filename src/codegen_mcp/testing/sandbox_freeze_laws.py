"""The laws of ``sandbox/base.py`` about standing still."""

from __future__ import annotations

import asyncio
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable, WrongState
from codegen_mcp.core.limits import RunLimits
from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.guest_run import KILL_S
from codegen_mcp.testing.sandbox_rig import WITHIN_S, Ran, Rig, alive, eventually

_COUNTING = """
import os, sys, time
os.fork()
out = open(f"count-{os.getpid()}", "wb", buffering=0)
print(1, flush=True)
while not os.path.exists("enough"):
    out.write(b"x")
print(2, flush=True)
"""


async def what_is_frozen_stands_still_and_goes_on_afterwards(rig: Rig) -> None:
    """No byte is written meanwhile, by any process; the run then ends as it would have."""
    place = await rig.place()
    workspace = place.spec.volume.root / "workspace"
    ran = Ran()
    running = asyncio.ensure_future(rig.run(place, _COUNTING, ran=ran))
    await eventually(
        lambda: len(sizes := _sizes(workspace)) == 2 and all(sizes.values()), "both write"
    )
    for _ in range(3):
        report = await place.sandbox.freeze()
        try:
            assert report.frozen
            assert report.how in ("cgroup", "stopped")
            before = _sizes(workspace)
            assert len(before) == 2
            assert all(before.values())
            await asyncio.sleep(0.05)  # time in which a process that runs writes thousands
            assert _sizes(workspace) == before
        finally:
            await place.sandbox.thaw()
        await eventually(
            lambda before=before: all(  # type: ignore[misc]
                size > before[name] for name, size in _sizes(workspace).items()
            ),
            "both go on",
        )
    (workspace / "enough").touch()
    await asyncio.wait_for(running, WITHIN_S)
    assert ran.end.exit_code == 0
    assert ran.end.ended_by is EndedBy.EXIT
    assert (await rig.run(place, "print(3)")).stdout == b"3\n"


async def a_frozen_sandbox_can_be_closed(rig: Rig) -> None:
    """In the middle of a run; nothing is left, and a thaw afterwards is harmless."""
    place = await rig.place()
    ran = Ran()
    running = asyncio.ensure_future(
        rig.run(place, "print(1, flush=True); import time; time.sleep(600)", ran=ran)
    )
    await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
    inside = place.sandbox.processes()
    assert (await place.sandbox.freeze()).frozen
    await asyncio.wait_for(place.sandbox.aclose(), WITHIN_S)
    assert not any(map(alive, inside))
    await asyncio.gather(running, return_exceptions=True)
    await place.sandbox.thaw()
    try:
        await place.sandbox.freeze()
    except SandboxUnavailable:
        pass
    else:
        raise AssertionError("froze a sandbox that is closed")


async def a_freeze_that_is_cancelled_is_undone(rig: Rig) -> None:
    """At whatever moment the cancel comes; a second freeze at once is refused."""
    place = await rig.place()
    for wait_s in (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008):
        freezing = asyncio.ensure_future(place.sandbox.freeze())
        await asyncio.wait([freezing], timeout=wait_s)
        freezing.cancel()
        await asyncio.gather(freezing, return_exceptions=True)
        if not freezing.cancelled():
            try:
                await place.sandbox.freeze()
            except WrongState:
                pass
            else:
                raise AssertionError("was frozen twice")
            await place.sandbox.thaw()
        assert (await rig.run(place, "print(1)")).stdout == b"1\n"


async def a_deadline_that_passes_in_the_freeze_ends_the_run_afterwards(rig: Rig) -> None:
    """The sandbox outlives it, however long it stood still."""
    place = await rig.place()
    ran = Ran()
    limits = RunLimits(timeout_s=0.3, output_bytes=1 << 20)
    code = "print(1, flush=True); import time; time.sleep(600)"
    running = asyncio.ensure_future(rig.run(place, code, ran=ran, limits=limits))
    await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
    assert (await place.sandbox.freeze()).frozen
    # Longer than the deadline and the time that a guest has to obey together.
    await asyncio.wait([running], timeout=0.3 + KILL_S + 0.2)
    assert not running.done()
    await place.sandbox.thaw()
    await asyncio.wait_for(running, WITHIN_S)
    assert ran.end.ended_by is EndedBy.TIMEOUT
    assert ran.stdout == b"1\n"
    assert not ran.end.sandbox_lost
    assert (await rig.run(place, "print(2)")).stdout == b"2\n"


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.glob("count-*")}
