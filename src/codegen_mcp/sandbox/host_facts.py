"""What this host is and allows, one fact after the other: the ground that backends stand on.

Read or tried, never concluded from version numbers. The backends' own self-tests have the last word
on what holds; these facts say why something does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.sandbox import landlock
from codegen_mcp.sandbox.fixes import APPARMOR_SWITCH, apparmor, fix_for, user_namespaces
from codegen_mcp.sandbox.launcher import ENVIRONMENT
from codegen_mcp.sandbox.place import Place, find_place

_CLONE_NEWUSER = 0x10000000
_TRY = (
    "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); "
    f"result = libc.unshare({_CLONE_NEWUSER}); "
    "print(os.strerror(ctypes.get_errno()) if result else 'ok')"
)
_TRY_S = 10.0
_UNTRIED = "could not be tried"
_SECCOMP_MODES = {"0": "none", "1": "strict", "2": "filter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One property of the host."""

    name: str
    good: bool
    """Whether the strongest backends that need it can have it."""
    seen: str
    """What was read or tried."""
    fix: str = ""
    """Empty where nothing has to be done."""


def host_facts(place: Place | None = None, root: Path = Path("/")) -> list[Fact]:
    """Look at everything; blocks for some 30 ms. Never raises.

    Args:
        place: Where the worker runs; None looks.
        root: Where ``/proc`` is looked for.
    """
    place = place or find_place()
    status = _pairs(_read(root / "proc/self/status"))
    return [
        _kernel(),
        _user(status),
        _user_namespaces(place, root),
        _apparmor(place, root),
        _seccomp(status),
        _landlock(),
        _proc(place, root),
    ]


def _kernel() -> Fact:
    name = os.uname()
    return Fact(name="kernel", good=True, seen=f"{name.sysname} {name.release} {name.machine}")


def _user(status: Mapping[str, str]) -> Fact:
    if os.geteuid() == 0:
        held = "with all capabilities" if _all_capabilities(status) else "without some capabilities"
        seen = f"root, {held}: each session gets a user of its own"
    else:
        seen = f"user {os.geteuid()}: sessions run as it too"
    return Fact(name="user", good=True, seen=seen)


def _user_namespaces(place: Place, root: Path) -> Fact:
    said = _try_namespace()
    if said.startswith(_UNTRIED):
        return Fact(name="user namespaces", good=True, seen=said)
    good = said == "ok"
    return Fact(
        name="user namespaces",
        good=good,
        seen="can be made" if good else f"refused: {said}",
        fix="" if good else user_namespaces(place, root / "proc/sys"),
    )


def _apparmor(place: Place, root: Path) -> Fact:
    value = _read(root / "proc/sys" / APPARMOR_SWITCH)
    if value != "1":
        return Fact(
            name="AppArmor",
            good=True,
            seen="does not restrict user namespaces" if value else "has no such restriction here",
        )
    under = _read(root / "proc/self/attr/current").strip("\x00") or "unknown"
    return Fact(
        name="AppArmor",
        good=False,
        seen=f"restricts unprivileged user namespaces ({APPARMOR_SWITCH}=1, worker is {under})",
        fix=apparmor(place),
    )


def _seccomp(status: Mapping[str, str]) -> Fact:
    mode = _SECCOMP_MODES.get(status.get("Seccomp", ""), "unknown")
    fixed = status.get("NoNewPrivs") == "1"
    seen = f"mode of the worker: {mode}, no_new_privs {'set' if fixed else 'not set'}"
    return Fact(name="seccomp", good=mode != "strict", seen=seen)


def _landlock() -> Fact:
    version = landlock.abi()
    seen = f"version {version}" if version else "this kernel has none"
    if 0 < version < landlock.SIGNAL_SCOPE:
        seen += f": signals are confined from {landlock.SIGNAL_SCOPE} on"
    fix = "" if version else fix_for("this kernel has no Landlock")
    return Fact(name="Landlock", good=version > 0, seen=seen, fix=fix)


def _proc(place: Place, root: Path) -> Fact:
    """What covers /proc keeps a user namespace from one of its own (mount_namespaces(7))."""
    points = [line.split()[4] for line in _read(root / "proc/self/mountinfo").splitlines()]
    masked = sorted(point for point in points if point.startswith("/proc/"))
    ignored = {"/proc/sys/fs/binfmt_misc"}
    masked = [point for point in masked if point not in ignored]
    return Fact(
        name="/proc",
        good=not masked,
        seen=f"masked: {', '.join(masked[:8])}" if masked else "not masked",
        fix=fix_for("mount proc", place=place) if masked else "",
    )


def _try_namespace() -> str:
    """Make a user namespace in a child of its own; ``ok`` or the kernel's reason."""
    argv = [sys.executable, "-I", "-S", "-c", _TRY]
    if os.geteuid() == 0:  # what sessions may is what counts, and they are never root
        nobody = 65534
        argv = [
            *("/usr/bin/setpriv", f"--reuid={nobody}", f"--regid={nobody}"),
            *("--clear-groups", *argv),
        ]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRY_S,
            env=ENVIRONMENT,
            cwd="/",
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{_UNTRIED} ({error})"
    said = done.stdout.decode(errors="replace").strip()
    errors = done.stderr.decode(errors="replace").strip().splitlines()
    return said or f"{_UNTRIED} ({errors[-1] if errors else f'exit {done.returncode}'})"


def _all_capabilities(status: Mapping[str, str]) -> bool:
    last = _read(Path("/proc/sys/kernel/cap_last_cap"))
    try:
        return int(status.get("CapEff", "0"), 16) == (1 << (int(last) + 1)) - 1
    except ValueError:
        return False


def _pairs(text: str) -> dict[str, str]:
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
