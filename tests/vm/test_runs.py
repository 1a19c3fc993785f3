"""Every limit of a session on version 2, and what a run that met it is told to have ended by."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from codegen_mcp.core.limits import KIB, MIB, ResourceLimits, RunLimits
from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox import registry
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.cgroup_files import KernelCgroupFs, pairs
from codegen_mcp.sandbox.cgroup_v2 import V2Cgroup
from codegen_mcp.sandbox.selftest.bed import Bed, Place
from codegen_mcp.testing.sandbox_ground import Ground, prepared_ground
from codegen_mcp.testing.sandbox_rig import Ran, Rig
from codegen_mcp.testing.volume_ground import ground_directory, grounds

LIMITS = ResourceLimits(
    memory_bytes=128 * MIB,
    disk_bytes=32 * MIB,
    pids=48,
    tmp_bytes=64 * MIB,
    file_size_bytes=256 * MIB,
)
WITHIN_S = 60.0
"""An emulated processor is slow."""
LONG = RunLimits(timeout_s=120, output_bytes=MIB)
FS = KernelCgroupFs()


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with prepared_ground() as prepared:
        yield prepared


@pytest.fixture
def config(ground: Ground) -> Iterator[BackendConfig]:
    with ground.config() as found:
        assert found.cgroups is not None
        assert found.cgroups.version == 2
        yield found


@pytest.fixture
async def rig(ground: Ground, config: BackendConfig) -> AsyncIterator[Rig]:
    async with Rig(registry.create("bubblewrap", config), config, ground.identities) as made:
        yield made


def group_of(place: Place) -> Path:
    cgroup = place.spec.cgroup
    assert isinstance(cgroup, V2Cgroup)
    return cgroup.attach_files[0].parent.parent


def run_groups(place: Place) -> dict[str, str]:
    """Names of the runs' groups that hold a process, with those processes."""
    found = {}
    for path in group_of(place).glob("run-*"):
        with suppress(OSError):  # removed meanwhile
            if processes := FS.read(path / "cgroup.procs").split():
                found[path.name] = " ".join(processes)
    return found


async def waiting_apart(place: Place) -> str:
    """Wait until the spare is in a group of its own; return the group's name."""
    async with asyncio.timeout(WITHIN_S):
        while len(run_groups(place)) != 1:
            await asyncio.sleep(0.01)
    (name,) = run_groups(place)
    return name


async def test_the_waiting_spare_is_alone_in_a_group_before_its_run(rig: Rig) -> None:
    place = await rig.place(LIMITS)
    name = await waiting_apart(place)
    group = group_of(place)
    assert FS.read(group / name / "memory.oom.group").strip() == "1"
    assert FS.read(group / "guest" / "memory.oom.group").strip() == "0"
    assert FS.read(group / "memory.oom.group").strip() == "0"
    ran = await rig.run(place, "print(open('/proc/self/cgroup').read())", limits=LONG)
    assert ran.end.ended_by is EndedBy.EXIT
    assert await waiting_apart(place) != name
    assert not (group / name).exists()


async def test_a_bomb_is_ended_as_a_whole_and_the_session_goes_on(rig: Rig) -> None:
    place = await rig.place(LIMITS)
    await waiting_apart(place)
    guest = FS.read(group_of(place) / "guest" / "cgroup.procs")
    bomb = """
import os, time
for n in range(6):
    if os.fork() == 0:
        kept = []
        while True:
            kept.append(bytearray(1 << 20))
            kept[-1][::4096] = b'x' * 256
os.wait()
print('a child is gone and I am not')
time.sleep(60)
"""
    ran = await rig.run(place, bomb, limits=LONG)
    assert ran.end.ended_by is EndedBy.MEMORY, ran.end
    assert ran.end.exit_code == 137
    assert b"I am not" not in ran.stdout
    assert 100 * MIB < ran.end.peak.memory_peak_bytes <= LIMITS.memory_bytes
    events = pairs(FS.read(group_of(place) / "memory.events"))
    assert events["oom_group_kill"] >= 1
    assert set(FS.read(group_of(place) / "guest" / "cgroup.procs").split()) & set(guest.split())
    await waiting_apart(place)
    after = await rig.run(place, "print(1)", limits=LONG)
    assert (after.end.ended_by, after.stdout) == (EndedBy.EXIT, b"1\n")
    assert after.end.peak.memory_peak_bytes < 64 * MIB  # its own, not the bomb's


@pytest.mark.parametrize("where", ["/dev/shm", "/tmp"])
async def test_files_in_memory_count_as_memory(rig: Rig, where: str) -> None:
    limits = dataclasses.replace(LIMITS, memory_bytes=48 * MIB)
    place = await rig.place(limits)
    fill = f"open('{where}/a', 'wb').write(b'x' * {60 * MIB})"
    ran = await rig.run(place, fill, limits=LONG)
    assert ran.end.ended_by is EndedBy.MEMORY, ran.end


async def test_a_tighter_limit_of_one_run_holds_for_it_alone(rig: Rig) -> None:
    place = await rig.place(LIMITS)
    take = f"data = b'x' * {60 * MIB}; print(len(data))"
    tight = dataclasses.replace(LONG, memory_bytes=40 * MIB)
    assert (await rig.run(place, take, limits=tight)).end.ended_by is EndedBy.MEMORY
    assert (await rig.run(place, take, limits=LONG)).end.ended_by is EndedBy.EXIT


async def test_what_the_limit_of_all_sessions_ends_is_not_the_session_s(
    ground: Ground, config: BackendConfig
) -> None:
    assert config.cgroups is not None
    async with Rig(registry.create("bubblewrap", config), config, ground.identities) as rig:
        place = await rig.place(LIMITS)
        above = group_of(place).parent
        kept = FS.read(above / "memory.max")
        FS.write(above / "memory.max", str(64 * MIB))
        try:
            ran = await rig.run(place, f"b'x' * {100 * MIB}", limits=LONG)
        finally:
            FS.write(above / "memory.max", kept.strip())
        assert ran.end.ended_by is EndedBy.MEMORY
        assert place.spec.cgroup is not None
        assert place.spec.cgroup.read().parent_oom_kills >= 1
        assert "worker" in ran.end.remedy, ran.end.remedy


async def test_more_processes_than_allowed_are_refused_and_named(rig: Rig) -> None:
    place = await rig.place(LIMITS)
    await waiting_apart(place)
    bomb = """
import os, time
while True:
    if os.fork() == 0:
        time.sleep(600)
"""
    ran = await rig.run(place, bomb, limits=LONG)
    assert ran.end.ended_by is EndedBy.PIDS, (ran.end, ran.stderr[-500:])
    assert ran.end.leftovers >= 30
    again = await rig.run(place, "print(2)", limits=LONG)
    assert (again.end.ended_by, again.stdout) == (EndedBy.EXIT, b"2\n")


async def test_a_storm_of_forks_that_goes_on_is_ended_by_its_time(rig: Rig) -> None:
    place = await rig.place(LIMITS)
    await waiting_apart(place)
    storm = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    try:
        os.fork()
        os.setsid()
    except OSError:
        pass
"""
    ran = await rig.run(place, storm, limits=dataclasses.replace(LONG, timeout_s=8))
    assert ran.end.ended_by is EndedBy.TIMEOUT
    assert EndedBy.PIDS in ran.end.limits_hit
    assert not run_groups(place) or not ran.end.sandbox_lost
    if ran.end.sandbox_lost:  # a guest that does not answer within a second is replaced
        await place.reboot()
    await waiting_apart(place)
    assert len(FS.read(group_of(place) / "guest" / "cgroup.procs").split()) <= 3


async def test_cpu_time_is_counted_over_all_processes_and_ends_the_run(rig: Rig) -> None:
    place = await rig.place(LIMITS)
    spin = "import os\nfor n in range(3): os.fork()\nwhile True: pass"
    ran = await rig.run(place, spin, limits=dataclasses.replace(LONG, cpu_s=1.0))
    assert ran.end.ended_by is EndedBy.CPU, ran.end
    assert ran.end.peak.cpu_us >= 1_000_000


async def test_cpu_bandwidth_is_divided(rig: Rig) -> None:
    place = await rig.place(dataclasses.replace(LIMITS, cpu_millicores=250))
    spin = "import os\nfor n in range(2): os.fork()\nwhile True: pass"
    ran = await rig.run(place, spin, limits=dataclasses.replace(LONG, timeout_s=4))
    assert ran.end.ended_by is EndedBy.TIMEOUT
    assert ran.end.peak.cpu_us <= 0.25 * 1.4 * ran.end.duration_s * 1e6
    assert place.spec.cgroup is not None
    assert place.spec.cgroup.read().cpu_throttled > 5


async def test_frozen_nothing_moves_and_thawed_it_goes_on(rig: Rig) -> None:
    place = await rig.place(LIMITS)
    await waiting_apart(place)
    ran = Ran()
    count = "import time\nfor n in range(10**6): print(n, flush=True); time.sleep(0.01)"
    limits = dataclasses.replace(LONG, timeout_s=20)
    running = asyncio.ensure_future(rig.run(place, count, ran=ran, limits=limits))
    await asyncio.wait_for(ran.printed.wait(), WITHIN_S)
    report = await place.sandbox.freeze()
    assert (report.frozen, report.how) == (True, "cgroup")
    cgroup = place.spec.cgroup
    assert cgroup is not None
    used = cgroup.read().cpu_us
    await asyncio.sleep(0.5)
    assert cgroup.read().cpu_us == used
    printed = len(ran.stdout)
    await place.sandbox.thaw()
    async with asyncio.timeout(WITHIN_S):
        while len(ran.stdout) <= printed:
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not ran.outcome


@asynccontextmanager
async def place_on(
    kind: str, where: str, ground: Ground, config: BackendConfig
) -> AsyncIterator[tuple[Rig, Place]]:
    """A sandbox on a volume of that kind."""
    with ground_directory(where, ground.state) as directory:
        os.chmod(directory, 0o711)
        on = dataclasses.replace(ground, state=directory)
        with on.config(volume=kind) as there:
            there = dataclasses.replace(there, cgroups=config.cgroups)
            backend = registry.create("bubblewrap", there)
            async with Bed(backend, there) as bed, Rig(backend, there, ground.identities) as rig:
                yield rig, await bed.place(ground.identities[0], LIMITS)


KINDS = [
    *(("project", where) for where in grounds("project")),
    *(("reflink", where) for where in grounds("reflink") if "xfs" in where),
    ("loop", ""),
    ("tmpfs", ""),
    ("overlay", ""),
]


@pytest.mark.parametrize(("kind", "where"), KINDS, ids=lambda value: value or "here")
async def test_a_full_disk_is_named_in_bytes_and_in_files(
    kind: str, where: str, ground: Ground, config: BackendConfig
) -> None:
    async with place_on(kind, where, ground, config) as (rig, place):
        size = LIMITS.disk_bytes
        ran = await rig.run(
            place,
            f"for n in range({size // MIB + 8}): open('%d' % n, 'wb').write(b'x' * {MIB})",
            limits=LONG,
        )
        assert ran.end.ended_by is EndedBy.DISK, (ran.end, ran.stderr)
        assert b"OSError" in ran.stderr
        usage = place.spec.volume.usage()
        assert usage.full
        assert size - 2 * MIB <= usage.used_bytes <= size
        ran = await rig.run(place, "import os\nfor n in os.listdir('.'): os.unlink(n)", limits=LONG)
        assert ran.end.ended_by is EndedBy.EXIT
        many = f"for n in range({size // (8 * KIB)}): open('%d' % n, 'wb')"
        ran = await rig.run(place, many, limits=LONG)
        assert ran.end.ended_by is EndedBy.DISK, (ran.end, ran.stderr)
        assert place.spec.volume.usage().full


@pytest.mark.parametrize("where", grounds("project"))
async def test_a_session_cannot_leave_its_project(
    where: str, ground: Ground, config: BackendConfig
) -> None:
    leave = """
import fcntl, os, struct
made = os.open('/workspace/mine', os.O_CREAT | os.O_RDWR)
for descriptor in (made, os.open('/workspace', os.O_RDONLY)):
    for request, argument in (
        (0x401C5820, struct.pack('=IIIII8x', 0, 0, 0, 0, 0)),
        (0x40086602, struct.pack('=q', 0)),
    ):
        try:
            fcntl.ioctl(descriptor, request, argument)
        except OSError as error:
            print(error.errno)
        else:
            print('left')
"""
    async with place_on("project", where, ground, config) as (rig, place):
        ran = await rig.run(place, leave, limits=LONG)
        assert ran.stdout == b"1\n" * 4, (ran.stdout, ran.stderr)
