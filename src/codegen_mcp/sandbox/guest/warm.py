"""The warm parent: a process with the session's packages imported, from which spares are forked.

It runs code of packages, so it is as hostile as any run: it lies below the guest, is trusted with
nothing, and is killed when it does not answer or grows too large. A spare from it is forked twice,
so that it becomes a child of the guest; the kernel, not the parent, says what its pid is.
"""

from __future__ import annotations

import _socket
import gc
import os
import select
import sys
import time

import children
import messages
import program
import users
from kernel import PR_SET_PDEATHSIG, prctl
from spare import Spare, wait_for_run

TYPE_CHECKING = False  # importing typing would cost memory in every session
if TYPE_CHECKING:
    from config import Config

IMPORT_S = 30.0
"""Longest time for the imports."""
ANSWER_MS = 500
_CREDENTIALS = 2
"""SCM_CREDENTIALS (unix(7)); not in every interpreter's module."""
_PASSCRED = 16
HARMLESS_PTH = ("distutils-precedence.pth",)


class WarmParent:
    """The guest's handle of it."""

    def __init__(self, pid: int, channel: _socket.socket, asked: frozenset[str]) -> None:
        self.pid = pid
        self.channel = channel
        self.asked = asked
        self.ready = False
        self.config: Config | None = None

    @classmethod
    def fork(cls, config: Config, control: _socket.socket, names: frozenset[str]) -> WarmParent:
        """Start one; it says on its channel when the imports are done."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except BaseException:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            try:
                children.forget()
                ours.close()
                control.close()
                serve(config, theirs, names)
            finally:
                os._exit(1)
        theirs.close()
        return cls(pid, ours, names)

    def finish_start(self) -> bool:
        """Read its first word: False when it could not, or may not, be used."""
        try:
            self.ready = messages.receive(self.channel)[0] == [b"ready"]
        except (OSError, ValueError):
            self.ready = False
        return self.ready

    def fork_spare(self) -> Spare | None:
        """Have it fork a spare; None when it fails to in time."""
        entrance, run = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        report, reporter = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            report.setsockopt(_socket.SOL_SOCKET, _PASSCRED, 1)
            messages.send(self.channel, [b"fork"], [run.fileno(), reporter.fileno()])
            pid = first_sender(report)
            report.setsockopt(_socket.SOL_SOCKET, _PASSCRED, 0)
        except OSError:
            entrance.close()
            report.close()
            return None
        finally:
            run.close()
            reporter.close()
        return Spare(pid, entrance, report, warm=True)

    def end(self) -> None:
        """Kill and collect it."""
        try:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def first_sender(report: _socket.socket) -> int:
    """Pid of who sends the first message, as the kernel says; must become a child of ours."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    deadline = time.monotonic() + ANSWER_MS / 1000
    if not poll.poll(ANSWER_MS):
        raise OSError(0, "no answer")
    _, ancillary, _, _ = report.recvmsg(64, _socket.CMSG_SPACE(12))
    pid = 0
    for level, kind, data in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _CREDENTIALS):
            pid = int.from_bytes(data[:4], "little")
    while pid <= 1 or not is_child(pid):
        if pid <= 1 or time.monotonic() > deadline:
            raise OSError(0, "not a child")
        time.sleep(0.0002)  # until the middle process has gone
    return pid


def is_child(pid: int) -> bool:
    """Whether the process is a living child of ours."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def serve(config: Config, channel: _socket.socket, names: frozenset[str]) -> None:
    """Import, then fork a spare for each request; returns only to end."""
    if config.run_as is not None:
        users.become(*config.run_as)
    os.setsid()
    prctl(PR_SET_PDEATHSIG, 9)
    quiet = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(quiet, fd)
    os.close(quiet)
    os.chdir(config.workspace)
    gc.unfreeze()
    gc.enable()
    if has_startup_code(config.site_packages):
        return
    # A package may have modules of the same names.
    program.add_packages(config, os.listdir(config.site_packages))
    import _signal

    _signal.alarm(int(IMPORT_S))
    loaded = {name for name in sorted(names) if load(name)}
    _signal.alarm(0)
    gc.collect()
    gc.freeze()
    if not loaded or resident_kib() > config.warm_kib:
        return
    if not fork_leaves_one_thread():
        return
    messages.send(channel, [b"ready"])
    while True:
        message, fds = messages.receive(channel)
        if not message:
            return
        run, reporter = (_socket.socket(fileno=fd) for fd in fds)
        middle = fork()
        if middle == 0:
            if fork() != 0:
                os._exit(0)
            channel.close()
            reporter.send(b"up")
            gc.disable()
            try:
                wait_for_run(config, run, reporter, frozenset(loaded))
            finally:
                os._exit(1)
        run.close()
        reporter.close()
        os.waitpid(middle, 0)


def load(name: str) -> bool:
    """Import one package; whatever goes wrong is left for the program to meet."""
    try:
        __import__(name)
    except BaseException:
        return False
    return True


def fork() -> int:
    """os.fork without the warning for threads, which end at the fork (see below)."""
    warnings = sys.modules.get("warnings")
    if warnings is None:
        return os.fork()
    filters = warnings.filters[:]
    warnings.simplefilter("ignore")
    try:
        return os.fork()
    finally:
        warnings.filters[:] = filters
        warnings._filters_mutated() if hasattr(warnings, "_filters_mutated") else None


def fork_leaves_one_thread() -> bool:
    """Whether the libraries' threads end at a fork (OpenBLAS' do); else a fork could hang."""
    pid = fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def has_startup_code(site_packages: str) -> bool:
    """Whether a .pth file runs code at each start; it must see the run's own environment."""
    try:
        for name in os.listdir(site_packages):
            if name.endswith(".pth") and name not in HARMLESS_PTH:
                with open(site_packages + "/" + name, "rb") as file:
                    if any(line.startswith((b"import ", b"import\t")) for line in file):
                        return True
    except OSError:
        return True
    return False


def resident_kib() -> int:
    """Resident memory of this process."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except OSError:
        return 1 << 40
