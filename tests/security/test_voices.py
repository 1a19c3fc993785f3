"""What a host does not give is said alike by start-up lines, doctor, capacity, readiness, sessions.

An ordinary user without privileges, and what each row takes away from it, for real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import codegen_mcp
from codegen_mcp.bootstrap.isolation import WARNING
from codegen_mcp.sandbox import landlock
from codegen_mcp.testing.sandbox_child import ORDINARY_UID

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change the host's mounts"),
    pytest.mark.skipif(
        landlock.abi() < landlock.SIGNAL_SCOPE,
        reason="this kernel's Landlock is too old for process-hardened without root",
    ),
]
HARDENED = "process-hardened"


@dataclass(frozen=True, kw_only=True)
class Lack:
    """What is taken away, and what must be said of it."""

    name: str
    takes: Sequence[str] = ()
    """Words of ``codegen_mcp.testing.pod``."""
    mounts: str = ""
    level: str = HARDENED
    """What is required."""
    got: str = HARDENED
    """Empty: it refuses to start."""
    said: Sequence[str] = ()
    """Of the warning, or the refusal."""


LACKS = [
    Lack(
        name="no namespaces",
        takes=["runtime-default"],
        said=["no bubblewrap", "hostUsers: false", "seccomp"],
    ),
    Lack(
        name="no namespaces where bubblewrap is required",
        takes=["runtime-default"],
        level="bubblewrap",
        got="",
        said=["'bubblewrap' or stronger", "hostUsers: false", f"--require-isolation {HARDENED}"],
    ),
    Lack(
        name="masked /proc",
        mounts="mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys",
        got="bubblewrap-noproc",
        said=["no private /proc", "mount proc"],
    ),
    Lack(
        name="no bubblewrap",
        mounts="mount --bind /dev/null $(command -v bwrap)",
        said=["bwrap is not installed", "bubblewrap"],
    ),
    Lack(
        name="no namespaces and no Landlock",
        takes=["runtime-default", "no-landlock"],
        got="",
        said=["no Landlock", "lsm=landlock"],
    ),
    Lack(name="nothing but root and control groups", got="bubblewrap", said=["no cgroup for"]),
]
SAMPLE = {"no namespaces"}
CASES = [pytest.param(one, id=one.name) for one in LACKS if SOAK or one.name in SAMPLE]


@pytest.fixture
def base() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="codegen-voices-", dir="/var/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def interpreter_for(user: list[str]) -> str:
    """Return a Python of this version that the other user may start, or skip."""
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (system, os.path.realpath(sys.executable)):
        command = ["/usr/bin/setpriv", *user, python, "-c", "pass"]
        if subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip(f"{sys.executable} cannot be started by another user, and there is no {system}")


def ask(base: Path, lack: Lack) -> dict[str, Any]:
    """Start the worker and the doctor there, and return what they say."""
    library, state = base / "library", base / "state"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(codegen_mcp.__file__).parent, library / "codegen_mcp", ignore=ignored)
    state.mkdir(mode=0o711)
    os.chown(state, ORDINARY_UID, ORDINARY_UID)
    prefix: list[str] = []
    if lack.mounts:
        script = f'{lack.mounts} && exec "$@"'
        prefix += ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh"]
    user = [f"--reuid={ORDINARY_UID}", f"--regid={ORDINARY_UID}", "--clear-groups", "--"]
    python = interpreter_for(user)
    if lack.takes:
        prefix += [python, "-m", "codegen_mcp.testing.pod", *lack.takes, "--"]
    packages = sysconfig.get_path("purelib")
    done = subprocess.run(
        [
            *(*prefix, "/usr/bin/setpriv", *user, python, "-m", "codegen_mcp.testing.voices"),
            *(str(state), lack.level),
        ],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{library}:{packages}",
            "RUNSC_PATH": "/nonexistent/runsc",
        },
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if "Permission denied" in done.stderr and packages in done.stderr:
        pytest.skip(f"{packages} cannot be read by another user")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("lack", CASES)
def test_what_is_missing_is_said_alike_everywhere(base: Path, lack: Lack) -> None:
    found = ask(base, lack)
    worker, doctor = found["worker"], found["doctor"]
    if not lack.got:
        assert doctor["worker"]["refusal"] == worker["refusal"]
        assert found["exit_code"] == 1
        for words in lack.said:
            assert words in worker["refusal"]
        return

    assert found["exit_code"] == 0
    lines, capacity, session = worker["lines"], worker["capacity"], worker["session"]
    warned = [line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)]
    told = "\n".join(warned)
    for words in lack.said:
        assert words in told
    sandbox = [line for line in lines if line.startswith("sandbox: ")]
    assert f"backend={lack.got} " in sandbox[0]
    assert sandbox == doctor["worker"]["start_up"]
    assert capacity == doctor["worker"]["facts"]
    assert capacity["warning"] == told
    assert session.items() <= capacity.items()
    assert session["sandbox"] == lack.got
    shown = [f"{name}: {line}" for name, text in capacity.items() for line in text.split("\n")]
    assert worker["readyz"][0] == "ready"
    assert sorted(worker["readyz"][1:]) == sorted(shown)
    used = next(one for one in doctor["backends"] if one["level"] == lack.got)
    walls = {name: who for name, who in session.items() if name in used["enforces"]}
    assert used["enforces"] == walls
    assert session.get("weaker", "") == used["reason"]
