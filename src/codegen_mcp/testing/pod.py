"""What pods take away from a worker, for tests: ``python -m codegen_mcp.testing.pod WORDS -- CMD``.

WORDS: ``runtime-default`` is the part of containerd's and Docker's default seccomp profile that
matters here (new namespaces and mounts are refused without CAP_SYS_ADMIN); ``no-landlock`` is a
kernel without Landlock. Both hold for the command and everything that it starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Collection

from codegen_mcp.sandbox import seccomp
from codegen_mcp.sandbox import seccomp_tables as tables

_LANDLOCK = {"landlock_create_ruleset": tables.Number(444, 444)}
_MOUNTS = ("mount", "umount2", "pivot_root", "setns")


def program(words: Collection[str]) -> bytes:
    """Assemble the filter."""
    arch = seccomp.machine()
    out = seccomp.Assembler()
    out.load(0)
    if "no-landlock" in words:
        _refuse(out, "landlock", _LANDLOCK, arch, errno.ENOSYS)
    if "runtime-default" in words:
        _refuse(out, "clone3", {"clone3": tables.ABSENT["clone3"]}, arch, errno.ENOSYS)
        mounts = {name: call for name, call in tables.REFUSED.items() if name in _MOUNTS}
        _refuse(out, "mounts", mounts, arch, errno.EPERM)
        for name, call in (("unshare", tables.NAMESPACES["unshare"]), ("clone", tables.CLONE)):
            out.equal(getattr(call, arch), None, f"{name}.end")
            out.load(16)
            out.any_bit(tables.CLONE_NAMESPACES, None, f"{name}.fine")
            out.give(seccomp.refuse(errno.EPERM))
            out.label(f"{name}.fine")
            out.give(seccomp.ALLOW)
            out.label(f"{name}.end")
    out.give(seccomp.ALLOW)
    return out.assemble()


def take_away(words: Collection[str]) -> None:
    """Hold this process to it, without new privileges from here on."""
    code_bytes = program(words)
    code = ctypes.create_string_buffer(code_bytes, len(code_bytes))
    header = struct.pack("HxxxxxxP", len(code_bytes) // 8, ctypes.addressof(code))
    buffer = ctypes.create_string_buffer(header, len(header))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((38, 1, 0), (22, 2, ctypes.addressof(buffer))):
        if libc.prctl(*[ctypes.c_ulong(word) for word in (*arguments, 0, 0)]) < 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _refuse(
    out: seccomp.Assembler, label: str, calls: dict[str, tables.Number], arch: str, code: int
) -> None:
    for call in calls.values():
        out.equal(getattr(call, arch), label)
    out.jump(f"{label}.end")
    out.label(label)
    out.give(seccomp.refuse(code))
    out.label(f"{label}.end")


if __name__ == "__main__":
    at = sys.argv.index("--")
    take_away(sys.argv[1:at])
    os.execv(sys.argv[at + 1], sys.argv[at + 1 :])
