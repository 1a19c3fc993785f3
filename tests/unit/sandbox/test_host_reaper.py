"""After a crash everything of the dead worker goes, and nothing else."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.limits import MIB
from codegen_mcp.sandbox import mounts
from codegen_mcp.sandbox.cgroup_detect import detect
from codegen_mcp.sandbox.host_processes import kill_matching, live_uids, runs_as, uids_of
from codegen_mcp.sandbox.host_reaper import reap
from codegen_mcp.sandbox.loop_device import attached, devices_below
from codegen_mcp.testing.kernel_objects import nothing_left

OURS = 3_100_001
NEIGHBOUR = 3_100_777
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="running as another user needs root")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "state"
    directory.mkdir()
    with nothing_left(tmp_path):
        yield directory


def sleeper(uid: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sleep", "60"], user=uid, group=uid, extra_groups=[])


def test_a_clean_directory_gives_nothing_to_do(state: Path) -> None:
    assert not reap(state, cgroups=None).found_any


@needs_root
def test_processes_of_the_dead_worker_s_users_are_killed_and_no_others(state: Path) -> None:
    with sleeper(OURS) as ours, sleeper(NEIGHBOUR) as neighbour:
        try:
            found = reap(state, cgroups=None, uids={OURS})
            assert ours.wait(5) == -9
            assert found.processes == 1
            assert neighbour.poll() is None
        finally:
            ours.kill()
            neighbour.kill()


@needs_root
def test_a_process_with_only_some_ids_of_ours_is_not_ours() -> None:
    argv = ["setpriv", "--ruid", str(OURS), "--euid", str(NEIGHBOUR), "/bin/sleep", "60"]
    with subprocess.Popen(argv) as process:
        deadline = time.monotonic() + 5
        while OURS not in uids_of(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert not runs_as({OURS})(process.pid)
        assert runs_as({OURS, NEIGHBOUR})(process.pid)
        assert {OURS, NEIGHBOUR} <= live_uids()
        process.kill()


def test_root_is_never_a_session_s_user() -> None:
    assert not runs_as({0})(os.getpid())
    assert not runs_as({0, os.geteuid()} - {os.geteuid()})(1)


def test_what_does_not_die_is_reported_at_the_deadline() -> None:
    killed, left = kill_matching(lambda pid: False, within_s=0.1)
    assert (killed, left) == (0, [])


@needs_root
def test_those_that_fork_meanwhile_are_killed_too(state: Path) -> None:
    script = "while true; do /bin/sleep 60 & /bin/true; done"
    argv = ["/bin/sh", "-c", f"ulimit -u 40; {script}"]
    with subprocess.Popen(argv, user=OURS, group=OURS, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 5
        while (
            sum(
                1
                for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
                if runs_as({OURS})(pid)
            )
            < 10
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found = reap(state, cgroups=None, uids={OURS})
        assert found.processes >= 10
        assert found.left == []
        process.wait(5)
    assert not any(
        runs_as({OURS})(pid) for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
    )


@needs_root
def test_mounts_and_devices_below_the_directory_go_and_others_stay(
    state: Path, tmp_path: Path
) -> None:
    inside, outside = state / "sessions" / "one" / "volume", tmp_path / "other"
    inside.mkdir(parents=True)
    outside.mkdir()
    mounts.mount("none", outside, "tmpfs")
    mounts.mount("none", inside, "tmpfs")
    (inside / "deeper").mkdir()
    mounts.mount("none", inside / "deeper", "tmpfs")
    image = state / "image"
    image.touch()
    os.truncate(image, MIB)
    try:
        with open(inside / "busy", "w"), attached(image):
            found = reap(state, cgroups=None)
            assert found.mounts == [str(inside / "deeper"), str(inside)]
            assert len(found.loop_devices) == 1
            assert found.left == []
        assert devices_below(state) == []
        assert len(mounts.mounts_below(outside)) == 1
    finally:
        mounts.unmount(outside)


def test_control_groups_of_the_dead_worker_are_removed(state: Path, tmp_path: Path) -> None:
    token = secrets.token_hex(8)
    with nothing_left(tmp_path, token):
        dead = detect(token)
        if dead.driver is None:
            pytest.skip(f"control groups: {dict(dead.refused)}; {dead.fix}")
        dead.driver.create("orphan")
        following = detect(token)
        assert following.driver is not None
        assert reap(state, cgroups=following.driver).cgroups == ["orphan"]
        following.driver.close()


NON_ROOT = """
import os, subprocess, sys, time
from pathlib import Path
from codegen_mcp.sandbox.host_reaper import reap

state = Path(sys.argv[1])
(state / "slots").mkdir()
plain = subprocess.Popen(["/bin/sleep", "60"])
elsewhere = subprocess.Popen(
    ["bwrap", "--ro-bind", "/", "/", "--unshare-user", "--die-with-parent", "/bin/sleep", "60"])
ours = subprocess.Popen(
    ["bwrap", "--ro-bind", "/", "/", "--unshare-user", "--unshare-pid", "--tmpfs", "/mnt",
     "--bind", str(state / "slots"), "/mnt", "/bin/sleep", "60"])
deadline = time.monotonic() + 10
while True:
    lines = Path(f"/proc/{ours.pid}/mountinfo").read_text().splitlines()
    if any(" /slots " in line or line.split()[3].endswith("/slots") for line in lines):
        break
    children = Path(f"/proc/{ours.pid}/task/{ours.pid}/children").read_text().split()
    if children:
        lines = Path(f"/proc/{children[0]}/mountinfo").read_text().splitlines()
        if any(line.split()[3].endswith("/slots") for line in lines):
            break
    if time.monotonic() > deadline or ours.poll() is not None:
        sys.exit("not started")
    time.sleep(0.01)
found = reap(state, cgroups=None)
ours.wait(5)
print(ours.returncode != 0, plain.poll(), elsewhere.poll(), found.processes > 0, found.left)
plain.kill(); elsewhere.kill(); plain.wait(); elsewhere.wait()
"""


@needs_root
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_without_root_only_processes_with_a_part_of_the_directory_bound_are_killed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    state = Path("/tmp") / f"codegen-test-{secrets.token_hex(4)}"
    state.mkdir(mode=0o755)
    os.chown(state, 65_534, 65_534)
    try:
        argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        argv += [sys.executable, "-c"]
        source = str(Path(mounts.__file__).parents[2])
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": source}
        readable = subprocess.run(
            [*argv, "import codegen_mcp.sandbox.host_reaper"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if readable.returncode != 0:
            pytest.skip(f"an ordinary user cannot read this checkout: {readable.stderr[-200:]}")
        done = subprocess.run(
            [*argv, NON_ROOT, str(state)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "True None None True []\n", done.stderr
    finally:
        shutil.rmtree(state)
