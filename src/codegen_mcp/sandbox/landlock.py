"""Landlock by system call: a process gives up files, TCP, and signals to others, for good.

Source: landlock(7), linux/landlock.h. It needs no privilege and no namespace. Only the standard
library is used and Python 3.8 is enough: ``confine.py`` carries this module into sandboxes.
What it cannot restrict at any version known here: stat and existence, chmod, chown, utime and
setxattr of what the user owns, and (before version 9) connecting to a Unix socket by its path.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_REFER = 1 << 13
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | _TRUNCATE | _IOCTL_DEV

READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
DEVICE = READ_FILE | WRITE_FILE
WRITE = 0xFFFF & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)

_ALL_TCP = 3
_ALL_SCOPES, _SIGNALS = 3, 2
"""Abstract Unix sockets and signals."""

SIGNAL_SCOPE = 6
"""The version from which on signals can be confined."""


def abi() -> int:
    """Return the kernel's Landlock version; 0 when it has none or it is switched off."""
    version = _libc().syscall(
        ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION)
    )
    return max(int(version), 0)


def restrict(rules: Iterable[tuple[str, int]], at_most: int = 99) -> int:
    """Confine this process and all that it starts to the rules; everything else is refused.

    Args:
        rules: (path, access rights below it). Missing paths are passed over.
        at_most: Use no later version.

    Returns:
        The version in force.

    Raises:
        OSError: The kernel has no Landlock, or refuses.
    """
    version = min(abi(), at_most)
    if version < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    handled = _handled_files(version)
    attributes = struct.pack("QQQ", handled, _ALL_TCP, _ALL_SCOPES)
    attributes = attributes[: 8 if version < 4 else 16 if version < SIGNAL_SCOPE else 24]
    _enter(attributes, [(path, access & handled) for path, access in rules])
    return version


def scope_signals() -> bool:
    """From now on signal only what starts below this process; False where the kernel cannot."""
    if abi() < SIGNAL_SCOPE:
        return False
    # Every layer that does not grant it refuses links and renames between directories (EXDEV).
    _enter(struct.pack("QQQ", _REFER, 0, _SIGNALS), [("/", _REFER)])
    return True


def _enter(attributes: bytes, rules: Iterable[tuple[str, int]]) -> None:
    libc = _libc()
    ruleset = _check(
        libc.syscall(
            ctypes.c_long(_CREATE_RULESET),
            attributes,
            ctypes.c_size_t(len(attributes)),
            ctypes.c_uint32(0),
        )
    )
    try:
        for path, access in rules:
            _add(libc, ruleset, path, access)
        zero = ctypes.c_ulong(0)
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero))
        _check(
            libc.syscall(ctypes.c_long(_RESTRICT_SELF), ctypes.c_int(ruleset), ctypes.c_uint32(0))
        )
    finally:
        os.close(ruleset)


def _add(libc: ctypes.CDLL, ruleset: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= _ON_FILES
        _check(
            libc.syscall(
                ctypes.c_long(_ADD_RULE),
                ctypes.c_int(ruleset),
                ctypes.c_int(_RULE_PATH_BENEATH),
                struct.pack("=Qi", access, place),
                ctypes.c_uint32(0),
            )
        )
    finally:
        os.close(place)


def _handled_files(version: int) -> int:
    bits = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    return (1 << bits) - 1


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, "Landlock: " + os.strerror(code))
    return result
