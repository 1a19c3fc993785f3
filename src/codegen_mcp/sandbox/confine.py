"""The launcher of the process backend: a supervisor outside, the confined guest inside.

Runs as the session's user under the session's interpreter, from a zip archive in memory (with
``landlock.py``), so it needs nothing on disk and only the standard library of Python 3.8.

The guest's Landlock domain can neither signal nor trace the supervisor outside of it; the
supervisor's own lets it signal only what is inside. The guest is the subreaper of what runs
start; when the guest ends, what is left comes to the supervisor (prctl(2)), which kills it and
ends too. So it does when the worker ends or says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

import landlock  # type: ignore[import-not-found,unused-ignore]

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def main(settings_fd: int) -> int:
    """Start the guest and supervise it; the settings are JSON, written by ``process.py``."""
    with open(settings_fd, "rb") as file:
        settings: dict[str, Any] = json.loads(file.read())
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    if os.getppid() != settings["worker"]:
        return 1  # it ended while we started
    scoped = settings["landlock"] >= landlock.SIGNAL_SCOPE and landlock.scope_signals()
    guest = os.fork()
    if guest == 0:
        _become_guest(settings)
    os.write(settings["status_fd"], json.dumps({"child-pid": guest}).encode() + b"\n")
    for fd in (*settings["own_fds"], *settings["guest_fds"]):
        os.close(fd)
    return _supervise(guest, scoped)


def _become_guest(settings: dict[str, Any]) -> None:
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _be_killed_first()
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.setsid()
        os.umask(0o022)
        os.chdir("/")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if settings["processes"]:
            resource.setrlimit(resource.RLIMIT_NPROC, (settings["processes"],) * 2)
        for fd in settings["own_fds"]:
            os.close(fd)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        if settings["landlock"]:
            # The guest's own /proc entry: its children have none, and so see no other process.
            rules = [*settings["rules"], (f"/proc/{os.getpid()}", landlock.READ)]
            landlock.restrict(rules, settings["landlock"])
        if settings["seccomp"]:
            _seccomp(bytes.fromhex(settings["seccomp"]))
        os.execve(settings["argv"][0], settings["argv"], settings["env"])
    except BaseException as error:
        os.write(2, f"confine: {error}\n".encode())
    finally:
        os._exit(70)


def _be_killed_first() -> None:
    """Make the kernel's OOM killer take the guest and its runs before the supervisor."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _seccomp(program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    buffer = ctypes.create_string_buffer(header, len(header))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(buffer))


def _supervise(guest: int, scoped: bool) -> int:
    """Wait until the guest ends, or SIGTERM tells that the worker has ended or wants the end."""
    while signal.sigwait({signal.SIGCHLD, signal.SIGTERM}) == signal.SIGCHLD:
        if _reap(guest):
            break
    if scoped:
        _kill_domain()
    else:
        _kill_descendants()
    return 0


def _reap(guest: int) -> bool:
    """Collect what has ended; True when the guest is among it."""
    while True:
        pid = os.waitpid(-1, os.WNOHANG)[0]
        if pid in (0, guest):
            return pid == guest


def _kill_domain() -> None:
    """Kill with one call, which no fork escapes: the domain keeps it from everything else."""
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _kill_descendants() -> None:
    """Stop, then kill every descendant until none is left; what is stopped cannot fork."""
    while True:
        found = _living()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        try:
            os.waitpid(-1, 0)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def _living() -> set[int]:
    """All descendants that are not zombies."""
    living: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        for child in _children(waiting.pop()):
            waiting.append(child)
            if _state(child) not in "ZX":
                living.add(child)
    return living


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(word) for word in file.read().split()]
    except OSError:
        pass
    return found


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            text = file.read()
        return text[text.rindex(")") + 2]
    except (OSError, ValueError):
        return "X"


def _prctl(*arguments: int) -> None:
    words = [ctypes.c_ulong(word) for word in (*arguments, *[0] * (5 - len(arguments)))]
    if _LIBC.prctl(*words) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {arguments[0]}: {os.strerror(code)}")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
