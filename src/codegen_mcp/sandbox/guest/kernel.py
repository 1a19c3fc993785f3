"""System calls that Python has no function for: prctl(2), pidfd_open(2), close_range(2).

Straight on ``_ctypes``: the ``ctypes`` package would stay in every session's memory.
"""

from __future__ import annotations

import _ctypes  # type: ignore[import-not-found]  # private, has no stub
import os

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
_PIDFD_OPEN = 434
_CLOSE_RANGE = 436
_CLONE_NEWUSER = 0x10000000
_CAPABILITY_VERSION = 0x20080522


class _Long(_ctypes._SimpleCData):  # type: ignore[misc,type-arg]
    _type_ = "l"


class _Function(_ctypes.CFuncPtr):  # type: ignore[misc]
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = _Long


_LIBC = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # the program itself
_PRCTL = _Function(_ctypes.dlsym(_LIBC, "prctl"))
_SYSCALL = _Function(_ctypes.dlsym(_LIBC, "syscall"))
_UNSHARE = _Function(_ctypes.dlsym(_LIBC, "unshare"))
_CAPSET = _Function(_ctypes.dlsym(_LIBC, "capset"))


def give_way(yes: bool) -> None:
    """Whether this process and its forks let others go on when they wake (sched(7), SCHED_BATCH).

    What is made ready between two runs shall not hold up the answer of the first.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH if yes else os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        pass  # some kernels of containers refuse; it is a courtesy


def prctl(option: int, value: int) -> None:
    """Change an attribute of this process; OSError when it is refused."""
    if _PRCTL(_Long(option), _Long(value), _Long(0), _Long(0), _Long(0)) & 0xFFFFFFFF:
        raise OSError(0, f"prctl({option}, {value}) was refused")


def pidfd_open(pid: int) -> int:
    """Return a descriptor that becomes readable when the child ends."""
    fd = int(_SYSCALL(_Long(_PIDFD_OPEN), _Long(pid), _Long(0)))
    if fd < 0:
        raise OSError(0, f"pidfd_open({pid}) was refused")
    return fd


def own_user_namespace() -> None:
    """Enter a new user namespace (unshare(2))."""
    if _UNSHARE(_Long(_CLONE_NEWUSER)) & 0xFFFFFFFF:
        raise OSError(0, "a user namespace was refused")


class _Words(_Long * 3):  # type: ignore[misc,valid-type]
    pass


def set_capabilities(mask: int) -> None:
    """Have these capabilities of the first 32, effective and permitted, and no others (capset(2)).

    A header of version and pid; then effective, permitted and inheritable, for each 32 of them.
    """
    header = _Words(_CAPABILITY_VERSION)
    data = _Words(mask | mask << 32)
    at = _ctypes.addressof
    if _CAPSET(_Long(at(header)), _Long(at(data))) & 0xFFFFFFFF:
        raise OSError(0, "capabilities cannot be set")


def close_from(first: int) -> None:
    """Close every descriptor from this one on."""
    if int(_SYSCALL(_Long(_CLOSE_RANGE), _Long(first), _Long(0x7FFFFFFF), _Long(0))) < 0:
        os.closerange(first, 65536)
