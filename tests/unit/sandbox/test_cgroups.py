"""Control groups as this host has them: limits hold, and their evidence is right."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.errors import LimitExceeded
from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.sandbox import cgroup_v1
from codegen_mcp.sandbox.cgroup import Cgroup, CgroupDriver
from codegen_mcp.sandbox.cgroup_detect import detect
from codegen_mcp.sandbox.cgroup_files import hierarchies_v1, hierarchy_v2
from codegen_mcp.sandbox.cgroup_v1_driver import V1Driver
from codegen_mcp.sandbox.cgroup_v2_driver import V2Driver
from codegen_mcp.testing.kernel_objects import nothing_left

LIMITS = ResourceLimits(memory_bytes=64 * MIB, pids=24, cpu_millicores=500)
WITHIN_S = 10.0


@pytest.fixture
def token(tmp_path: Path) -> Iterator[str]:
    name = secrets.token_hex(8)
    with nothing_left(tmp_path, name):
        yield name


@pytest.fixture
def driver(token: str) -> Iterator[CgroupDriver]:
    found = detect(token)
    if found.driver is None:
        pytest.skip(f"control groups: {dict(found.refused)}; {found.fix}")
    yield found.driver
    found.driver.remove_stale()
    found.driver.close()


@pytest.fixture
def group(driver: CgroupDriver) -> Cgroup:
    made = driver.create("one")
    made.set_limits(LIMITS)
    return made


def needs(driver: CgroupDriver, controller: str) -> None:
    if controller not in driver.controllers:
        pytest.skip(f"controller {controller} cannot be used here")


def start(group: Cgroup, code: str) -> subprocess.Popen[bytes]:
    """Run Python inside the group; attached before it begins."""
    attach = "".join(f"echo 0 > '{path}'\n" for path in group.attach_files)
    argv = ["/bin/sh", "-c", f'set -e\n{attach}exec "$@"', "sh", sys.executable, "-IS", "-c", code]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def run(group: Cgroup, code: str) -> tuple[int, bytes]:
    with start(group, code) as process:
        output, _ = process.communicate(timeout=WITHIN_S)
        return process.returncode, output


def until_empty(group: Cgroup) -> None:
    deadline = time.monotonic() + WITHIN_S
    while group.pids():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_more_memory_than_the_limit_is_killed_and_counted_as_its_own(
    driver: CgroupDriver, group: Cgroup
) -> None:
    needs(driver, "memory")
    before = group.read()
    status, _ = run(group, "a = bytearray(200 << 20)")
    after = group.read()
    assert status == -9
    assert after.oom_kills - before.oom_kills == 1
    assert after.parent_oom_kills == 0
    assert 60 * MIB < after.memory_peak_bytes <= 64 * MIB


def test_children_count_together(driver: CgroupDriver, group: Cgroup) -> None:
    needs(driver, "memory")
    code = (
        "import os, time\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0:\n"
        "        a = bytearray(30 << 20); time.sleep(0.5); os._exit(0)\n"
        "print([os.wait()[1] for _ in range(4)])\n"
    )
    run(group, code)
    assert group.read().oom_kills >= 1


def test_a_kill_by_the_cap_of_all_sessions_is_told_apart(token: str) -> None:
    driver = capped_driver(token, 48 * MIB)
    group = driver.create("innocent")
    try:
        group.set_limits(ResourceLimits(memory_bytes=512 * MIB))
        status, _ = run(group, "a = bytearray(200 << 20)")
        found = group.read()
        assert status == -9
        assert (found.oom_kills, found.parent_oom_kills) == (1, 1)
    finally:
        driver.remove_stale()
        driver.close()


def capped_driver(token: str, memory_bytes: int) -> CgroupDriver:
    probed = detect(token)
    if probed.driver is None or "memory" not in probed.driver.controllers:
        pytest.skip(f"control groups: {dict(probed.refused)}; {probed.fix}")
    probed.driver.close()
    name = f"codegen-{token}"
    if probed.driver.version == 2:
        unified = hierarchy_v2()
        assert unified is not None
        return V2Driver(unified.own, unified.mount_point, name, memory_bytes)
    found = hierarchies_v1()
    return V1Driver(
        {"memory": found["memory"].own / name},
        {"memory": found["memory"].mount_point},
        memory_bytes,
    )


def test_forks_above_the_limit_are_refused_and_counted(driver: CgroupDriver, group: Cgroup) -> None:
    needs(driver, "pids")
    code = (
        "import os, time\n"
        "made = 0\n"
        "try:\n"
        "    while made < 1000:\n"
        "        if os.fork() == 0: time.sleep(30); os._exit(0)\n"
        "        made += 1\n"
        "except OSError as error: print(made, error.errno, flush=True)\n"
    )
    with start(group, code) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        refused = group.read()
        group.kill()
    assert line == b"23 11\n"
    assert refused.pids_refused >= 1
    until_empty(group)


def test_a_tenth_of_a_core_is_a_tenth_of_a_core(driver: CgroupDriver, group: Cgroup) -> None:
    needs(driver, "cpu")
    group.set_limits(ResourceLimits(memory_bytes=64 * MIB, cpu_millicores=100))
    started = time.monotonic()
    with start(group, "while True: pass") as process:
        deadline = started + WITHIN_S
        while group.read().cpu_throttled < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        used_s = group.read().cpu_us / 1_000_000
        elapsed_s = time.monotonic() - started
        group.kill()
        process.wait(WITHIN_S)
    assert used_s <= 0.1 * (elapsed_s + 0.2)  # a period may have begun at either end


def test_a_fork_bomb_is_killed_in_one_call_or_two(driver: CgroupDriver, group: Cgroup) -> None:
    code = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n"
    with start(group, code) as process:
        deadline = time.monotonic() + WITHIN_S
        while len(group.pids()) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = time.monotonic()
        group.kill()
        assert time.monotonic() - started < 1
        process.wait(WITHIN_S)
    until_empty(group)


def test_what_is_frozen_stands_still_and_can_still_be_killed(
    driver: CgroupDriver, group: Cgroup
) -> None:
    needs(driver, "freezer")
    with start(group, "while True: pass") as process:
        deadline = time.monotonic() + WITHIN_S
        while group.read().cpu_us == 0:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        frozen = group.freeze()
        first = group.read().cpu_us
        time.sleep(0.05)  # an interval to measure over, not to wait for something
        second = group.read().cpu_us
        group.kill()
        assert process.wait(WITHIN_S) == -9
    assert frozen
    assert first == second


def test_a_limit_below_the_present_use_is_refused(driver: CgroupDriver, group: Cgroup) -> None:
    needs(driver, "memory")
    code = (
        "a = bytearray(b'x') * (30 << 20)\nprint('ready', flush=True)\nimport time; time.sleep(60)"
    )
    with start(group, code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert not group.set_memory(8 * MIB)
        with pytest.raises(LimitExceeded):
            group.set_limits(ResourceLimits(memory_bytes=8 * MIB))
        assert group.set_memory(128 * MIB)
        assert group.set_memory(48 * MIB)
        assert process.poll() is None
        group.kill()


def test_a_new_peak_can_be_started(driver: CgroupDriver, group: Cgroup) -> None:
    needs(driver, "memory")
    run(group, "a = bytearray(40 << 20)")
    high = group.read().memory_peak_bytes
    group.reset_peak()
    if group.read().memory_peak_bytes == high:
        pytest.skip("this kernel keeps one peak for the whole life of a group")
    assert group.read().memory_peak_bytes < 20 * MIB < high


def test_a_busy_group_is_not_removed_and_an_empty_one_is(
    driver: CgroupDriver, group: Cgroup
) -> None:
    with start(group, "import time; time.sleep(60)") as process:
        deadline = time.monotonic() + WITHIN_S
        while not group.pids():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert not group.remove()
        group.kill()
        process.wait(WITHIN_S)
    until_empty(group)
    deadline = time.monotonic() + WITHIN_S
    while not group.remove():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert group.remove()


def test_a_renamed_group_keeps_its_limits_and_processes(
    driver: CgroupDriver, group: Cgroup
) -> None:
    group.rename("two")
    with start(group, "import time; time.sleep(60)") as process:
        deadline = time.monotonic() + WITHIN_S
        while not group.pids():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        group.kill()
        process.wait(WITHIN_S)


def test_a_name_that_is_taken_is_refused_without_a_trace(
    driver: CgroupDriver, group: Cgroup
) -> None:
    with pytest.raises(FileExistsError):
        driver.create("one")
    assert all(path.exists() for path in group.attach_files)


def test_a_dead_worker_s_groups_are_emptied_by_the_next_one(token: str) -> None:
    dead = detect(token)
    if dead.driver is None:
        pytest.skip(f"control groups: {dict(dead.refused)}; {dead.fix}")
    group = dead.driver.create("orphan")
    with start(group, "import time; time.sleep(60)") as process:
        deadline = time.monotonic() + WITHIN_S
        while not group.pids():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        group.freeze()
        following = detect(token)
        assert following.driver is not None
        assert following.driver.remove_stale() == ["orphan"]
        assert process.wait(WITHIN_S) == -9
        assert following.driver.remove_stale() == []
        following.driver.close()


def test_all_sessions_together_get_less_than_the_host_has(token: str) -> None:
    found = detect(token, memory_reserve_bytes=512 * MIB)
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert found.memory_bytes <= total - 512 * MIB or found.memory_bytes == total // 2
    if found.driver:
        found.driver.close()


DELEGATED = """
from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.sandbox.cgroup_detect import detect

found = detect("0123456789abcdef")
group = found.driver.create("one")
group.set_limits(ResourceLimits(memory_bytes=64 * MIB))
print(found.driver.version, sorted(group.controllers), group.remove())
found.driver.close()
"""


def test_an_ordinary_user_can_limit_in_groups_that_were_given_to_it(tmp_path: Path) -> None:
    found = hierarchies_v1()
    if os.geteuid() != 0 or not {"memory", "pids", "cpu", "freezer"} <= found.keys():
        pytest.skip("giving version 1 groups away needs root, and all of them mounted")
    name = f"codegen-test-{secrets.token_hex(4)}"
    wanted = [found[controller].own / name for controller in cgroup_v1.CONTROLLERS]
    made: list[Path] = []
    try:
        for path in dict.fromkeys(wanted):
            path.mkdir()
            made.append(path)
            for given in (path, path / "cgroup.procs", path / "tasks"):
                os.chown(given, 65_534, 65_534)
        attach = "".join(f"echo 0 > '{path}/cgroup.procs'\n" for path in made)
        user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        source = str(Path(cgroup_v1.__file__).parents[2])
        enter = ["/bin/sh", "-c", f'set -e\n{attach}exec "$@"', "sh"]
        done = subprocess.run(
            [*enter, *user, sys.executable, "-c", DELEGATED],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": source},
            capture_output=True,
            text=True,
            check=False,
        )
        if "Permission denied" in done.stderr and "codegen_mcp" in done.stderr:
            pytest.skip("an ordinary user cannot read this checkout")
        assert done.stdout == "1 ['cpu', 'freezer', 'memory', 'pids'] True\n", done.stderr
    finally:
        for path in made:
            path.rmdir()
