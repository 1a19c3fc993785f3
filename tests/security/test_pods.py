"""Pods and hosts that give less, simulated: each gets the rung that it can hold, and the words.

An ordinary user without privileges, as in a pod with runAsNonRoot and allowPrivilegeEscalation
false; what the rows take away is in their columns.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from codegen_mcp.sandbox import landlock
from codegen_mcp.testing.sandbox_child import run_as
from codegen_mcp.testing.sandbox_ground import Ground, prepared_ground

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
MASKED = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys"
NO_BWRAP = "mount --bind /dev/null $(command -v bwrap)"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change the host's mounts")


@dataclass(frozen=True, kw_only=True)
class Pod:
    """One row: what is taken away, and what a worker must make of it."""

    name: str
    takes: Sequence[str] = ()
    """Words of ``codegen_mcp.testing.pod``."""
    mounts: str = ""
    """Shell, in a mount namespace of the pod."""
    user_namespace: bool = False
    """hostUsers: false."""
    rung: str = ""
    """What a worker gets that accepts process-hardened; empty: it does not start."""
    words: Sequence[str] = ()
    """What it says then."""
    default: str = ""
    """What a worker gets that requires bubblewrap; empty: it does not start, and says why."""
    refusal: Sequence[str] = ()
    gvisor: bool = False
    """Whether runsc works there."""
    sample: bool = False


PODS = [
    Pod(
        name="RuntimeDefault seccomp",
        takes=["runtime-default"],
        rung="process-hardened",
        words=["backend=process-hardened", "known gaps", "no bubblewrap: ", "hostUsers: false"],
        refusal=["'bubblewrap' or stronger", "--require-isolation process-hardened", "hostUsers"],
        sample=True,
    ),
    Pod(
        name="seccomp Unconfined, procMount Default",
        mounts=MASKED,
        rung="bubblewrap-noproc",
        words=["backend=bubblewrap-noproc", "no private /proc"],
        refusal=["--require-isolation bubblewrap-noproc", "bubblewrap-noproc works but is weaker"],
        sample=True,
    ),
    Pod(
        name="seccomp Unconfined, procMount Unmasked",
        rung="bubblewrap",
        words=["backend=bubblewrap ", "enforced by kernel: filesystem network processes syscalls"],
        default="bubblewrap",
        gvisor=True,
    ),
    Pod(
        name="hostUsers false, procMount Unmasked, seccomp Unconfined",
        user_namespace=True,
        rung="bubblewrap",
        words=["backend=bubblewrap "],
        default="bubblewrap",
        gvisor=True,
    ),
    Pod(
        name="bubblewrap is not installed",
        mounts=NO_BWRAP,
        rung="process-hardened",
        words=["no bubblewrap: bwrap is not installed", "apt-get install bubblewrap"],
        refusal=["bwrap is not installed", "--require-isolation process-hardened"],
        gvisor=True,
        sample=True,
    ),
    Pod(
        name="RuntimeDefault seccomp on a kernel without Landlock",
        takes=["runtime-default", "no-landlock"],
        refusal=["no Landlock", "lsm=landlock", "hostUsers: false"],
    ),
]
CASES = [pytest.param(pod, id=pod.name) for pod in PODS if pod.sample or SOAK]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with prepared_ground() as prepared:
        yield prepared


def ask(ground: Ground, pod: Pod, *words: str) -> Mapping[str, Any]:
    """Start the pod's worker, and return what it says."""
    prefix: list[str] = []
    if pod.mounts:
        script = f'{pod.mounts} && exec "$@"'
        prefix += ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh"]
    inner: list[str] = ["/usr/bin/unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    if pod.takes:
        python = str(ground.interpreter.executable)
        prefix += [python, "-m", "codegen_mcp.testing.pod", *pod.takes, "--"]
    done = run_as(ground, words, prefix=prefix, inner=inner if pod.user_namespace else ())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("pod", CASES)
def test_a_pod_gets_the_rung_that_it_can_hold_and_the_words(ground: Ground, pod: Pod) -> None:
    if pod.rung == "process-hardened" and landlock.abi() < landlock.SIGNAL_SCOPE:
        pytest.skip("this kernel's Landlock is too old for process-hardened without root")
    found = ask(ground, pod, "choose", "auto")
    weakest, default = found["weakest"], found["default"]
    assert weakest.get("level", "") == pod.rung, weakest
    said = "\n".join(weakest.get("said", []))
    for word in pod.words:
        assert word in said
    assert default.get("level", "") == pod.default, default
    for word in pod.refusal:
        assert word in default["refused"]


@pytest.mark.skipif(not SOAK, reason="runs with --soak")
@pytest.mark.parametrize("pod", [pytest.param(pod, id=pod.name) for pod in PODS])
def test_gvisor_works_where_proc_can_be_mounted_and_says_what_is_in_its_way(
    ground: Ground, pod: Pod
) -> None:
    if shutil.which("runsc", path="/usr/local/bin:/usr/bin") is None:
        pytest.skip("runsc is not installed")
    found = ask(ground, pod, "probe", "gvisor")
    assert found["available"] is pod.gvisor, found["reason"]
    if not pod.gvisor:
        assert "the launcher failed" in found["reason"]


def test_a_privileged_pod_gets_the_full_ladder(ground: Ground) -> None:
    """A worker that is root, with session users of its own."""
    import asyncio

    from codegen_mcp.sandbox import registry

    with ground.config() as config:
        choice = asyncio.run(registry.choose(config))
    assert choice.backend.name == "bubblewrap"
