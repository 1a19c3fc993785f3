"""The text in front of every attack's code: system calls by name, and ways to report."""

from __future__ import annotations

import json
from collections.abc import Mapping

from codegen_mcp.sandbox import seccomp
from codegen_mcp.sandbox import seccomp_tables as tables

_FURTHER = {
    "capget": tables.Number(125, 90),
    "clone": tables.CLONE,
    "getpid": tables.Number(39, 172),
    "linkat": tables.Number(265, 37),
    "mq_open": tables.SHARED_IPC["mq_open"],
    "pidfd_open": tables.Number(434, 434),
    "pidfd_send_signal": tables.Number(424, 424),
    "prlimit64": tables.PRLIMIT64,
    "shmget": tables.SHARED_IPC["shmget"],
    "mknodat": tables.Number(259, 33),
}

_PRELUDE = '''
import os, sys
sys.path[:] = [p for p in sys.path if p not in ("", os.getcwd())]  # modules planted by others
import ctypes, errno, fcntl, json, mmap, os, resource, select, signal, socket, struct, sys, time
HOST = json.loads(os.environ["SELFTEST_HOST"])
NR = json.loads(os.environ["SELFTEST_CALLS"])
LIBC = ctypes.CDLL(None, use_errno=True)
GUEST = os.getppid()
_INSIDE = os.path.isdir("/run/codegen/guest")
HOST["venv"] = os.environ["VIRTUAL_ENV"]
for _name in ("guest", "template"):
    HOST[_name] = "/run/codegen/" + _name if _INSIDE else HOST[_name + "_outside"]

def held(*seen):
    print("HELD", *seen, flush=True); sys.exit(0)

def broken(*seen):
    print("BROKEN", *seen, flush=True); sys.exit(0)

def call(name, *words):
    """A system call by name; raises OSError."""
    if name not in NR:
        raise OSError(errno.ENOSYS, name)
    ctypes.set_errno(0)
    words = [w if isinstance(w, ctypes._SimpleCData) or not isinstance(w, int)
             else ctypes.c_long(w) for w in words]
    got = LIBC.syscall(ctypes.c_long(NR[name]), *words)
    if got < 0:
        raise OSError(ctypes.get_errno(), name)
    return got

def attempt(action):
    """(name of the error, None) or (None, what it returned)."""
    try:
        return None, action()
    except (ValueError, OverflowError) as error:
        return type(error).__name__, None
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error)), None

def refused(**actions):
    """Every action has to fail with an OSError."""
    seen = []
    for name, action in actions.items():
        error, got = attempt(action)
        if error is None:
            broken(name, "->", repr(got)[:200])
        seen.append(name + ":" + error)
    held(*seen)

def child(action):
    """Run in a forked child: (what it returned or raised, signal that ended it)."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            error, got = attempt(action)
            os.write(w, repr(error or got).encode()[:500])
        finally:
            os._exit(0)
    os.close(w)
    said = b""
    while part := os.read(r, 500):
        said += part
    os.close(r)
    status = os.waitpid(pid, 0)[1]
    return said.decode(), os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

def child_call(name, *words):
    """The same as call, in a child."""
    said, number = child(lambda: call(name, *words))
    code = getattr(errno, said.strip("'"), 0)
    if code:
        raise OSError(code, name)
    return said

def opened(path, flags=os.O_RDONLY):
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK); os.close(fd); return "opened " + path

def text(value):
    return ctypes.c_char_p(value.encode())
'''


def environment(host: Mapping[str, object]) -> dict[str, str]:
    """Return the variables that the prelude reads: facts of the host to attack, call numbers."""
    arch = seccomp.machine()
    calls = {**tables.REFUSED, **tables.ABSENT, **tables.SHARED_IPC, **_FURTHER}
    numbers = {name: getattr(number, arch) for name, number in calls.items()}
    known = {name: number for name, number in numbers.items() if number is not None}
    return {"SELFTEST_HOST": json.dumps(host), "SELFTEST_CALLS": json.dumps(known)}


def program(code: str) -> bytes:
    """Return an attack's code behind the prelude."""
    return f"{_PRELUDE}\n{code.strip()}\n".encode()
