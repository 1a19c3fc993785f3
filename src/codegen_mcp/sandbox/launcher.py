"""Starts confined processes, always from one thread that lives as long as the backend.

``bwrap --die-with-parent`` and our own guard ask the kernel for PR_SET_PDEATHSIG, and the parent it
means is the thread that forked, not the process (prctl(2)). A sandbox started from a pool's worker
thread would die with that thread.

No ``preexec_fn`` (it may deadlock in a threaded process): control groups are entered and the user
is changed by small programs that then exec the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import secrets
import shlex
import subprocess
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from codegen_mcp.sandbox.base import HostIdentity

PLAIN_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
"""All that a launcher sees: a worker's secrets must not be readable from /proc/PID/environ."""
_MARK_VALUE = secrets.token_hex(8)
MARK = f"CODEGEN_LAUNCHER={_MARK_VALUE}"
"""For the watchdog, in the environment of launchers that may hang half way; not a secret."""
ENVIRONMENT = {**PLAIN_ENVIRONMENT, "CODEGEN_LAUNCHER": _MARK_VALUE}
OOM_SCORE = 500
"""The host's OOM killer takes sandboxes before the worker."""

_Job = tuple[Callable[[], "subprocess.Popen[bytes]"], "Future[subprocess.Popen[bytes]]"]


class Spawner:
    """One thread that starts processes.

    Whoever holds a process started here also holds the spawner: when the last holder lets go,
    the thread ends, and with it everything it started.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_serve, args=(self._jobs,), name="sandbox-spawner", daemon=True
        )
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._jobs.put, None)

    @property
    def thread_id(self) -> int | None:
        """Kernel id of the thread."""
        return self._thread.native_id

    def spawn(
        self,
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int],
        stderr: int,
        stdin: int = subprocess.DEVNULL,
        env: Mapping[str, str] = ENVIRONMENT,
    ) -> asyncio.Future[subprocess.Popen[bytes]]:
        """Start a program with a minimal environment, in a process session of its own.

        The descriptors must stay open until the future is done, whoever is cancelled meanwhile
        (``outlast``). It holds OSError when the program cannot be started.

        Args:
            argv: The program, by absolute path.
            pass_fds: Descriptors that it inherits under the same numbers.
            stderr: Where its standard error goes.
            stdin: Its standard input; as its output, /dev/null where not given.
            env: Its whole environment.
        """
        started: Future[subprocess.Popen[bytes]] = Future()

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                list(argv),
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=env,
                cwd="/",
                pass_fds=pass_fds,
                start_new_session=True,
            )

        self._jobs.put((start, started))
        return asyncio.wrap_future(started)


def _serve(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        start, started = job
        try:
            started.set_result(start())
        except BaseException as error:
            started.set_exception(error)
        del job, start, started


def entry(
    command: Sequence[str], *, identity: HostIdentity | None, attach_files: Sequence[Path]
) -> list[str]:
    """Wrap a command so that it first enters control groups, then drops to the identity.

    Each step replaces itself by the next, so the process id stays. A step that fails ends the
    launch: nothing runs outside its group or as another user.
    """
    script = "set -e\n"
    for path in attach_files:
        script += f"echo 0 > {shlex.quote(str(_quick(path)))}\n"
    script += f"echo {OOM_SCORE} > /proc/self/oom_score_adj\n"
    script += 'exec "$@"\n'
    wrapped = ["/bin/sh", "-c", script, "sh"]
    if identity is not None:
        wrapped += ["/usr/bin/setpriv", "--reuid", str(identity.uid), "--regid", str(identity.gid)]
        wrapped += ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    return wrapped + list(command)


def _quick(attach_file: Path) -> Path:
    """Prefer version 1's ``tasks``: moving the writing thread alone takes no global lock.

    ``cgroup.procs`` waits for an RCU grace period, about 10 ms (kernel, cgroup_procs_write_start).
    The shell that writes has one thread, so the two mean the same.
    """
    tasks = attach_file.with_name("tasks")
    return tasks if tasks.exists() else attach_file


class ErrorPipe:
    """A pipe for a launcher's complaints: never blocks the writer, keeps the first part."""

    _KEPT = 4096

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._text = b""

    def close_write_end(self) -> None:
        """Close the worker's copy of the write end."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def text(self) -> str:
        """Return what was said so far, on one line."""
        self._drain()
        return " ".join(self._text.decode(errors="replace").split())

    def close(self) -> None:
        """Close both ends; what was said stays readable."""
        self._drain()
        self.close_write_end()
        if self._read_end >= 0:
            os.close(self._read_end)
            self._read_end = -1

    def _drain(self) -> None:
        while self._read_end >= 0 and (room := self._KEPT - len(self._text)) > 0:
            try:
                part = os.read(self._read_end, room)
            except BlockingIOError:
                break
            if not part:
                break
            self._text += part


async def outlast(future: asyncio.Future[Any]) -> bool:
    """Wait until a future is done; True when the waiting task was cancelled meanwhile.

    The caller then raises CancelledError itself, after what cannot be left half done.
    """
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


async def ended(pidfd: int, timeout_s: float) -> bool:
    """Wait until the process of a pidfd has ended; False when the time is over first."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    watched = os.dup(pidfd)

    def notice() -> None:
        loop.remove_reader(watched)
        if not done.done():
            done.set_result(None)

    loop.add_reader(watched, notice)
    try:
        async with asyncio.timeout(timeout_s):
            await done
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(watched)
        os.close(watched)
    return True


def parent_of(pid: int) -> int:
    """Return the parent's process id; 0 when the process is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return int(stat[stat.rindex(")") + 2 :].split()[1])
    return 0


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, or is no more."""
    with contextlib.suppress(OSError, ValueError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat[stat.rindex(")") + 2] in "TtZX"
    return True


def descendants(pid: int) -> list[int]:
    """Return the processes below one, parents first."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        children: list[int] = []
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                text = Path(f"/proc/{parent}/task/{task}/children").read_text()
                children += [int(child) for child in text.split()]
        found += children
        waiting += children
    return found
