"""Ends what a killed worker's launchers leave: a shell that wakes when the worker is gone.

Everything inside a sandbox dies with its worker (PR_SET_PDEATHSIG, end of file at the guest). A
bubblewrap whose parent is killed while its own child still waits for it leaves that child waiting
for ever, before any code of a session ran in it. Launchers carry a mark in their environment, which
the sandbox inside never sees; the shell looks for it (proc_pid_environ(5)).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from codegen_mcp.sandbox.launcher import MARK
from codegen_mcp.sandbox.mounts import outer_namespace

_SCRIPT = """
read -r word && exit 0
for look in 1 2 3 4 5 6 7; do
    for file in $(grep -lsa "$1" /proc/[0-9]*/environ); do
        pid=${file#/proc/}
        kill -9 "${pid%/environ}" 2> /dev/null
    done
    sleep 0.3
done
"""


@contextmanager
def watchdog() -> Iterator[None]:
    """Have the shell stand by for as long as the block lasts.

    It lives in the host's mount namespace: in the worker's own it would keep the volumes of a
    killed worker mounted while it looks, and the next one waiting for them.
    """
    outer = outer_namespace()
    enter = shutil.which("nsenter") if outer >= 0 else None
    shell = subprocess.Popen(
        [
            *((enter, f"--mount=/proc/self/fd/{outer}", "--") if enter else ()),
            *("/bin/sh", "-c", _SCRIPT, "sh", MARK),
        ],
        pass_fds=(outer,) if enter else (),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        start_new_session=True,
    )
    try:
        yield
    finally:
        shell.communicate(b"done\n")
