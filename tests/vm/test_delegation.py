"""Where a worker stands in the hierarchy, and what it may do: a service, a container, a pod."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codegen_mcp.core.limits import MIB

TOP = Path("/sys/fs/cgroup")
USER = 1000
OVERFLOW_S = 120
DELEGATED = ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
"""What systemd gives to the user of a service with ``Delegate=yes`` (kernel cgroup-v2.rst)."""
OWN_TREE = "umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"
LOOK = """
import json, os, subprocess
from pathlib import Path
from codegen_mcp.core.limits import MIB, ResourceLimits
from codegen_mcp.sandbox.cgroup_detect import detect
found = detect(TOKEN)
facts = {"memory_bytes": found.memory_bytes, "refused": dict(found.refused), "fix": found.fix}
facts["own"] = Path("/proc/self/cgroup").read_text().strip().split("::")[1]
if found.driver is not None:
    facts["version"], facts["controllers"] = found.driver.version, sorted(found.driver.controllers)
    group = found.driver.create("one")
    group.set_limits(ResourceLimits(memory_bytes=16 * MIB, pids=20))
    bomb = "import os; open(%r, 'w').write('0'); kept = [b'x' * (1 << 20) for _ in range(200)]"
    bomb %= str(group.attach_files[0])
    child = subprocess.Popen(["/usr/bin/python3", "-I", "-S", "-c", bomb])
    facts["bomb"], facts["oom_kills"] = child.wait(), group.read().oom_kills
    while not group.remove():
        group.kill()
    found.driver.close()
print(json.dumps(facts))
"""


@pytest.fixture
def token() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def service() -> Iterator[Path]:
    """A service's group as systemd makes it, below one that passes controllers on."""
    group = TOP / f"test{secrets.token_hex(3)}.slice" / "codegen.service"
    group.mkdir(parents=True)
    for above in (TOP, group.parent):
        (above / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    yield group
    (group.parent / "cgroup.kill").write_text("1")
    wait_for(lambda: "populated 0" in (group.parent / "cgroup.events").read_text())
    for left in sorted(group.parent.rglob("*"), reverse=True):
        if left.is_dir():
            left.rmdir()
    group.parent.rmdir()


def delegate(group: Path) -> None:
    for name in DELEGATED:
        os.chown(group / name, USER, USER)


def start(group: Path, token: str, *, before: str = "", user: bool = True, code: str = LOOK) -> Any:
    """Start Python in a group, as systemd or a container's runtime would."""
    as_user = f"setpriv --reuid {USER} --regid {USER} --clear-groups --" if user else ""
    code = f"TOKEN = {token!r}\n{code}"
    run = f"exec {as_user} {shlex.join([sys.executable, '-c', code])}"
    inner = f"{before}\n{run}" if before else run
    script = f"echo 0 > {group}/cgroup.procs\n"
    script += f"exec unshare -C -m sh -ec {shlex.quote(inner)}" if before else inner
    return subprocess.Popen(["/bin/sh", "-ec", script], stdout=subprocess.PIPE, text=True)


def look(group: Path, token: str, **how: Any) -> Any:
    with start(group, token, **how) as process:
        output, _ = process.communicate(timeout=OVERFLOW_S)
        assert process.returncode == 0
    return json.loads(output)


def holds_everything(found: Any) -> None:
    assert found["version"] == 2, found
    assert found["controllers"] == ["cpu", "freezer", "memory", "pids"]
    assert found["refused"] == {}
    assert (found["bomb"], found["oom_kills"]) == (-signal.SIGKILL, 1)


def test_a_service_with_delegation_holds_every_limit_from_a_leaf(service: Path, token: str) -> None:
    delegate(service)
    found = look(service, token)
    holds_everything(found)
    assert found["own"].endswith(f"codegen.service/codegen-{token}-worker")
    assert [path for path in service.iterdir() if path.is_dir()] == []


def test_one_without_delegation_is_told_what_to_do(service: Path, token: str) -> None:
    found = look(service, token)
    assert "version" not in found
    assert "Permission denied" in found["refused"]["memory"]
    assert "a group of its own" in found["fix"]


def test_a_limit_of_the_service_is_what_sessions_share(service: Path, token: str) -> None:
    delegate(service)
    (service / "memory.max").write_text(str(1024 * MIB))
    found = look(service, token)
    assert 512 * MIB <= found["memory_bytes"] <= 768 * MIB


def test_another_process_in_the_service_is_never_moved(service: Path, token: str) -> None:
    delegate(service)
    with subprocess.Popen(
        ["/bin/sh", "-c", f"echo 0 > {service}/cgroup.procs; exec cat"], stdin=subprocess.PIPE
    ) as stranger:
        wait_for(lambda: str(stranger.pid) in (service / "cgroup.procs").read_text().split())
        found = look(service, token)
        assert "version" not in found
        assert "busy" in found["refused"]["memory"], found
        assert str(stranger.pid) in (service / "cgroup.procs").read_text().split()


def test_a_container_with_a_hierarchy_of_its_own_holds_every_limit(
    service: Path, token: str
) -> None:
    found = look(service, token, before=OWN_TREE, user=False)
    holds_everything(found)
    assert found["own"] == f"/codegen-{token}-worker"


def test_a_pod_whose_hierarchy_is_read_only_is_told_so(service: Path, token: str) -> None:
    read_only = f"{OWN_TREE}; mount -o remount,bind,ro /sys/fs/cgroup"
    found = look(service, token, before=read_only)
    assert "version" not in found
    assert found["fix"]
    assert "Read-only" in found["refused"]["memory"], found


def test_what_a_killed_worker_left_is_ended_by_the_next(service: Path, token: str) -> None:
    delegate(service)
    leave = """
import os, signal, subprocess
from codegen_mcp.sandbox.cgroup_detect import detect
group = detect(TOKEN).driver.create("left")
script = "echo 0 > %s; exec sleep 600" % group.attach_files[0]
child = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True, stdout=2)
while child.pid not in group.pids():
    pass
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with start(service, token, code=leave) as process:
        left = int(process.communicate(timeout=OVERFLOW_S)[0])
        assert process.returncode == -signal.SIGKILL
    assert Path(f"/proc/{left}").exists()
    again = "import json\nfrom codegen_mcp.sandbox.cgroup_detect import detect\n"
    again += (
        "driver = detect(TOKEN).driver\nprint(json.dumps(driver.remove_stale()))\ndriver.close()"
    )
    # As a shell that moved along with the worker: a group with children takes no processes.
    assert look(service / f"codegen-{token}-worker", token, code=again) == ["left"]
    wait_for(lambda: not Path(f"/proc/{left}").exists())


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SESSIONS = """
import asyncio, json
from codegen_mcp.core.limits import MIB, ResourceLimits, RunLimits
from codegen_mcp.sandbox import registry
from codegen_mcp.testing.sandbox_ground import prepared_ground
from codegen_mcp.testing.sandbox_rig import Rig

LIMITS = ResourceLimits(memory_bytes=96 * MIB, pids=32)
RUNS = {
    "memory": "b'x' * (200 << 20)",
    "pids": "import os, time\\nwhile os.fork(): pass\\ntime.sleep(600)",
    "exit": "print(1)",
    "timeout": "while True: pass",
}

def moved(group):
    try:
        return any(path.read_text() for path in group.glob("run-*/cgroup.procs"))
    except OSError:  # removed meanwhile
        return False

async def main():
    facts = {}
    with prepared_ground() as ground, ground.config() as config:
        async with Rig(registry.create("bubblewrap", config), config, ()) as rig:
            place = await rig.place(LIMITS)
            group = place.spec.cgroup.attach_files[0].parent.parent
            for name, code in RUNS.items():
                async with asyncio.timeout(60):
                    while not moved(group):
                        await asyncio.sleep(0.01)
                seconds = 3 if name == "timeout" else 100
                limits = RunLimits(timeout_s=seconds, output_bytes=MIB)
                ran = await rig.run(place, code, limits=limits)
                facts[name] = ran.end.ended_by.name.lower()
    print(json.dumps(facts))

asyncio.run(main())
"""


def test_sessions_of_an_ordinary_user_s_service_are_limited_and_told_why(
    service: Path, token: str
) -> None:
    delegate(service)
    found = look(service, token, code=SESSIONS)
    assert found == {name: name for name in ("memory", "pids", "exit", "timeout")}
