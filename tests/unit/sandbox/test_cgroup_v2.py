"""Version 2: the rules of the hierarchy on a model, and what the real tree has here."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.errors import LimitExceeded
from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.sandbox.cgroup_files import KernelCgroupFs, hierarchy_v2
from codegen_mcp.sandbox.cgroup_v2 import V2Cgroup
from codegen_mcp.sandbox.cgroup_v2_driver import V2Driver
from codegen_mcp.testing.fake_cgroup2 import FakeCgroup2

TOP = Path("/model")
OWN = TOP / "worker.service"
NAME = "codegen-0123456789abcdef"
CAP = 1024 * MIB
STRANGER = 2**22 + 1
LIMITS = ResourceLimits(memory_bytes=64 * MIB, pids=32, cpu_millicores=1500)


@pytest.fixture
def kernel() -> FakeCgroup2:
    model = FakeCgroup2(TOP)
    model.add(OWN, os.getpid(), os.getppid())
    return model


@pytest.fixture
def driver(kernel: FakeCgroup2) -> V2Driver:
    return V2Driver(OWN, TOP, NAME, CAP, kernel)


def test_the_worker_moves_to_a_leaf_and_caps_all_sessions(
    kernel: FakeCgroup2, driver: V2Driver
) -> None:
    assert kernel.groups[OWN].processes == set()
    assert kernel.groups[OWN / f"{NAME}-worker"].processes == {os.getpid(), os.getppid()}
    assert kernel.read(OWN / NAME / "memory.max") == str(CAP)
    assert driver.controllers == {"memory", "pids", "cpu", "freezer"}
    assert driver.version == 2


def test_a_session_gets_its_limits_without_swap(kernel: FakeCgroup2, driver: V2Driver) -> None:
    group = driver.create("one")
    group.set_limits(LIMITS)
    path = OWN / NAME / "one"
    assert kernel.read(path / "memory.max") == str(64 * MIB)
    assert kernel.read(path / "memory.swap.max") == "0"
    assert kernel.read(path / "pids.max") == "32"
    assert kernel.read(path / "cpu.max") == "150000 100000"
    assert list(group.attach_files) == [path / "guest" / "cgroup.procs"]


def test_a_stranger_in_the_worker_s_group_is_not_moved(kernel: FakeCgroup2) -> None:
    kernel.groups[OWN].processes.add(STRANGER)
    with pytest.raises(OSError, match="busy"):
        V2Driver(OWN, TOP, NAME, CAP, kernel)
    assert kernel.groups[OWN].processes == {STRANGER, os.getpid(), os.getppid()}
    assert set(kernel.groups) == {TOP, OWN}


def test_a_group_that_was_not_delegated_is_refused_without_a_trace(kernel: FakeCgroup2) -> None:
    kernel.read_only.add(OWN)
    with pytest.raises(PermissionError):
        V2Driver(OWN, TOP, NAME, CAP, kernel)
    assert set(kernel.groups) == {TOP, OWN}


def test_the_host_s_root_needs_no_leaf(kernel: FakeCgroup2) -> None:
    kernel.groups[TOP].processes.add(os.getpid())
    driver = V2Driver(TOP, TOP, NAME, CAP, kernel)
    assert os.getpid() in kernel.groups[TOP].processes
    driver.close()
    assert set(kernel.groups) == {TOP, OWN}


def test_closing_puts_everything_back(kernel: FakeCgroup2, driver: V2Driver) -> None:
    assert driver.create("one").remove()
    driver.close()
    assert set(kernel.groups) == {TOP, OWN}
    assert kernel.groups[OWN].processes == {os.getpid(), os.getppid()}
    assert kernel.groups[OWN].enabled == set()


def test_closing_while_a_session_lives_leaves_it_alone(
    kernel: FakeCgroup2, driver: V2Driver
) -> None:
    group = driver.create("one")
    driver.close()
    assert OWN / NAME / "one" in kernel.groups
    assert group.remove()
    driver.close()
    assert set(kernel.groups) == {TOP, OWN}


def test_one_that_starts_in_a_leaf_builds_beside_it(kernel: FakeCgroup2, driver: V2Driver) -> None:
    leaf = OWN / f"{NAME}-worker"
    other = V2Driver(leaf, TOP, "codegen-fedcba9876543210", CAP, kernel)
    assert other.controllers == driver.controllers
    driver.close()  # cannot put things back while the other is there
    assert kernel.groups[leaf].processes == {os.getpid(), os.getppid()}
    other.close()
    assert set(kernel.groups) == {TOP, OWN}
    assert kernel.groups[OWN].processes == {os.getpid(), os.getppid()}


def test_only_what_is_offered_is_enabled() -> None:
    kernel = FakeCgroup2(TOP, controllers=("memory",))
    kernel.add(OWN, os.getpid())
    driver = V2Driver(OWN, TOP, NAME, CAP, kernel)
    assert driver.controllers == {"memory", "freezer"}
    group = driver.create("one")
    group.set_limits(LIMITS)
    assert group.read().pids == 0


def test_a_dead_worker_s_groups_are_killed_and_removed_wherever_they_are(
    kernel: FakeCgroup2,
) -> None:
    old = TOP / "old.service"
    kernel.add(old)
    kernel.add(old / NAME)
    kernel.add(old / f"{NAME}-worker")
    kernel.add(old / NAME / "one", STRANGER).frozen = True
    kernel.add(old / "codegen-another", STRANGER + 1)
    driver = V2Driver(OWN, TOP, NAME, CAP, kernel)
    assert driver.remove_stale() == ["one"]
    assert [path for path in kernel.groups if path.is_relative_to(old)] == [
        old,
        old / "codegen-another",
    ]


def test_a_kill_is_its_own_when_its_own_limit_was_met(
    kernel: FakeCgroup2, driver: V2Driver
) -> None:
    group = driver.create("one")
    events = kernel.groups[OWN / NAME / "one"].files
    assert group.read().oom_kills == 0
    events["memory.events"] = "max 4\noom 1\noom_kill 1\n"
    first = group.read()
    assert (first.oom_kills, first.parent_oom_kills) == (1, 0)
    events["memory.events"] = "max 4\noom 1\noom_kill 3\n"
    second = group.read()
    assert (second.oom_kills, second.parent_oom_kills) == (3, 2)


def test_counters_are_read_from_the_kernel_s_files(kernel: FakeCgroup2, driver: V2Driver) -> None:
    group = driver.create("one")
    files = kernel.groups[OWN / NAME / "one"].files
    files["memory.current"] = "4096\n"
    files["memory.peak"] = "8192\n"
    files["pids.current"] = "3\n"
    files["pids.events"] = "max 7\n"
    files["cpu.stat"] = "usage_usec 1234\nnr_periods 9\nnr_throttled 5\n"
    found = group.read()
    assert (found.memory_bytes, found.memory_peak_bytes) == (4096, 8192)
    assert (found.pids, found.pids_refused) == (3, 7)
    assert (found.cpu_us, found.cpu_throttled) == (1234, 5)


def test_a_limit_below_the_present_use_is_refused_instead_of_killing(
    kernel: FakeCgroup2, driver: V2Driver
) -> None:
    group = driver.create("one")
    group.set_limits(LIMITS)
    kernel.groups[OWN / NAME / "one"].files["memory.current"] = str(32 * MIB)
    assert not group.set_memory(16 * MIB)
    assert kernel.read(OWN / NAME / "one" / "memory.max") == str(64 * MIB)
    assert kernel.read(OWN / NAME / "one" / "memory.reclaim") == str(16 * MIB)
    with pytest.raises(LimitExceeded):
        group.set_limits(ResourceLimits(memory_bytes=16 * MIB))
    assert group.set_memory(32 * MIB)


def test_freezing_is_told_by_the_kernel(kernel: FakeCgroup2, driver: V2Driver) -> None:
    group = driver.create("one")
    assert group.freeze()
    group.thaw()
    assert not kernel.groups[OWN / NAME / "one"].frozen


def test_a_process_that_cannot_die_does_not_hold_the_worker(
    kernel: FakeCgroup2, driver: V2Driver
) -> None:
    group = driver.create("one")
    kernel.groups[OWN / NAME / "one" / "guest"].processes |= {STRANGER, STRANGER + 1}
    kernel.unkillable.add(STRANGER)
    started = time.monotonic()
    group.kill()
    assert time.monotonic() - started < 0.5
    assert group.pids() == [STRANGER]
    assert not group.remove()


@pytest.fixture
def session(kernel: FakeCgroup2, driver: V2Driver) -> V2Cgroup:
    """One whose guest group has this process as its spare."""
    group = driver.create("one")
    group.set_limits(LIMITS)
    kernel.write(group.attach_files[0], str(os.getpid()))
    return group


def test_a_waiting_spare_gets_a_group_that_ends_as_a_whole(
    kernel: FakeCgroup2, session: V2Cgroup
) -> None:
    assert session.runs is not None
    assert session.runs.prepare(1, os.getpid())
    path = OWN / NAME / "one" / "run-1"
    assert kernel.groups[path].processes == {os.getpid()}
    assert kernel.read(path / "memory.oom.group") == "1"
    assert kernel.read(OWN / NAME / "one" / "memory.oom.group") == "0\n"
    assert session.pids() == [os.getpid()]


def test_only_a_process_of_the_session_is_ever_moved(
    kernel: FakeCgroup2, session: V2Cgroup
) -> None:
    assert session.runs is not None
    assert not session.runs.prepare(1, os.getppid())
    assert kernel.groups[OWN / f"{NAME}-worker"].processes == {os.getppid()}
    assert kernel.children(OWN / NAME / "one") == ["guest"]


def test_a_run_has_its_own_peak_and_leaves_its_count_of_refusals(
    kernel: FakeCgroup2, session: V2Cgroup
) -> None:
    runs = session.runs
    assert runs is not None
    of_session = kernel.groups[OWN / NAME / "one"].files
    of_session |= {"memory.current": "1000\n", "memory.peak": "900000\n"}
    runs.prepare(1, os.getpid())
    session.reset_peak()
    runs.begin(1)
    of_run = kernel.groups[OWN / NAME / "one" / "run-1"].files
    of_run |= {"memory.peak": "5000\n", "pids.events": "max 2\n"}
    kernel.groups[OWN / NAME / "one" / "guest"].files["pids.events"] = "max 1\n"
    assert (session.read().memory_peak_bytes, session.read().pids_refused) == (6000, 3)
    runs.end()
    assert session.read().pids_refused == 3
    kernel.groups[OWN / NAME / "one" / "run-1"].processes.clear()
    runs.prepare(2, os.getppid())
    assert kernel.children(OWN / NAME / "one") == ["guest"]
    assert session.read().pids_refused == 3
    assert session.read().memory_peak_bytes == 900000


def test_a_group_that_comes_after_its_run_began_is_the_run_s(
    kernel: FakeCgroup2, session: V2Cgroup
) -> None:
    runs = session.runs
    assert runs is not None
    runs.begin(7)
    assert not runs.kill()
    assert runs.prepare(7, os.getpid())
    assert runs.kill()
    assert session.pids() == []
    runs.end()
    assert session.remove()


def test_a_guest_that_replaces_another_counts_anew(kernel: FakeCgroup2, session: V2Cgroup) -> None:
    runs = session.runs
    assert runs is not None
    runs.prepare(1, os.getpid())
    kernel.write(OWN / NAME / "one" / "guest" / "cgroup.procs", str(os.getpid()))
    assert runs.prepare(1, os.getpid())
    runs.begin(1)
    assert kernel.groups[OWN / NAME / "one" / "run-2"].processes == {os.getpid()}
    runs.kill()
    runs.end()
    assert session.remove()


@pytest.fixture
def real_group() -> Iterator[V2Cgroup]:
    """A group of the unified tree as it is mounted here, whichever controllers it has."""
    unified = hierarchy_v2()
    if unified is None:
        pytest.skip("no version 2 hierarchy is mounted")
    path = unified.own / f"codegen-test-{secrets.token_hex(4)}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"version 2 hierarchy: {error}")
    group = V2Cgroup(path, KernelCgroupFs())
    yield group
    group.kill()
    deadline = time.monotonic() + 5
    while not group.remove() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not path.exists()


def test_the_real_tree_kills_freezes_and_counts(real_group: V2Cgroup) -> None:
    script = f"echo 0 > {real_group.attach_files[0]}; for i in 1 2 3; do sleep 60 & done; wait"
    with subprocess.Popen(["/bin/sh", "-c", script]) as process:
        try:
            deadline = time.monotonic() + 5
            while len(real_group.pids()) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(real_group.pids()) == 4
            assert real_group.freeze()
            real_group.thaw()
            assert real_group.read().cpu_us > 0
            real_group.kill()
            assert process.wait(5) == -9
        finally:
            process.kill()
    assert real_group.pids() == []
