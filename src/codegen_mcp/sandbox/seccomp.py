"""The system call filter: a deny-list in classic BPF, assembled here.

Sources: seccomp(2); kernel Documentation/userspace-api/seccomp_filter.rst; linux/filter.h.
Jumps name labels, and the assembler counts. Only the low halves of the arguments named in the
tables are compared, which is what the kernel looks at too: a comparison of all 64 bits can be
dodged by setting high bits (CVE-2019-10063). A filter costs nothing for calls that it always
allows, because the kernel remembers those in a bitmap.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable, Mapping

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox import seccomp_tables as tables

_LOAD_WORD = 0x20
_JUMP = 0x05
_JUMP_EQUAL = 0x15
_JUMP_GREATER = 0x25
_JUMP_GREATER_EQUAL = 0x35
_JUMP_ANY_BIT = 0x45
_RETURN = 0x06

_NUMBER, _ARCHITECTURE = 0, 4
_REACH = 255
"""A conditional jump is one byte wide."""

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000


def refuse(code: int) -> int:
    """Return the action that makes a call fail with ``errno`` = code."""
    return 0x00050000 | code


def _low(argument: int) -> int:
    """Offset of an argument's low half in struct seccomp_data (little endian)."""
    return 16 + 8 * argument


class Assembler:
    """Collects instructions whose jumps name labels; None is the next instruction."""

    def __init__(self) -> None:
        self._code: list[tuple[int, str | None, str | None, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Put a label before the next instruction.

        Raises:
            ValueError: The name was used before.
        """
        if name in self._labels:
            raise ValueError(f"label {name!r} is placed twice")
        self._labels[name] = len(self._code)

    def load(self, offset: int) -> None:
        """Load a word of struct seccomp_data."""
        self._code.append((_LOAD_WORD, None, None, offset))

    def jump(self, target: str) -> None:
        """Go to a label, however far."""
        self._code.append((_JUMP, target, None, 0))

    def give(self, action: int) -> None:
        """End with an action."""
        self._code.append((_RETURN, None, None, action))

    def equal(self, value: int, then: str | None = None, otherwise: str | None = None) -> None:
        """Compare for equality."""
        self._code.append((_JUMP_EQUAL, then, otherwise, value))

    def greater(self, value: int, then: str | None = None, otherwise: str | None = None) -> None:
        """Compare, unsigned."""
        self._code.append((_JUMP_GREATER, then, otherwise, value))

    def at_least(self, value: int, then: str | None = None, otherwise: str | None = None) -> None:
        """Compare, unsigned."""
        self._code.append((_JUMP_GREATER_EQUAL, then, otherwise, value))

    def any_bit(self, mask: int, then: str | None = None, otherwise: str | None = None) -> None:
        """Test whether any bit of the mask is set."""
        self._code.append((_JUMP_ANY_BIT, then, otherwise, mask))

    def assemble(self) -> bytes:
        """Return the program as an array of struct sock_filter.

        Raises:
            ValueError: A label is missing, lies behind, or is out of a jump's reach.
        """
        program = []
        for position, (code, then, otherwise, value) in enumerate(self._code):
            if code == _JUMP:
                program.append((code, 0, 0, self._distance(position, then)))
                continue
            near = [self._distance(position, target) for target in (then, otherwise)]
            if max(near) > _REACH:
                raise ValueError(f"a jump of {max(near)} instructions is out of reach")
            program.append((code, near[0], near[1], value))
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)

    def _distance(self, position: int, target: str | None) -> int:
        if target is None:
            return 0
        if target not in self._labels:
            raise ValueError(f"label {target!r} is not placed")
        distance = self._labels[target] - position - 1
        if distance < 0:
            raise ValueError(f"label {target!r} lies behind its jump")
        return distance


def machine() -> str:
    """Return this machine's architecture as the tables name it.

    Raises:
        SandboxUnavailable: There is no table for it.
    """
    name = platform.machine().lower()
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)
    if name not in tables.AUDIT_ARCH:
        known = ", ".join(tables.AUDIT_ARCH)
        raise SandboxUnavailable(f"no system call table for machine {name!r}; known are {known}")
    return name


def build(architecture: str | None = None, *, shared_host: bool = False) -> bytes:
    """Assemble the filter.

    Args:
        architecture: ``x86_64`` or ``aarch64``; None is this machine's.
        shared_host: The sandbox has no network and IPC namespaces of its own: internet sockets,
            netlink, System V IPC and message queues are refused as well.
    """
    arch = architecture or machine()
    out = Assembler()
    out.load(_ARCHITECTURE)
    out.equal(tables.AUDIT_ARCH[arch], "native")
    out.give(KILL_PROCESS)  # int 0x80 and 32-bit code
    out.label("native")
    out.load(_NUMBER)
    if arch == "x86_64":
        out.at_least(tables.X32_BIT, None, "known")
        out.give(KILL_PROCESS)
        out.label("known")
    out.greater(tables.NEWEST, None, "listed")
    out.give(refuse(errno.ENOSYS))
    out.label("listed")
    refused = dict(tables.REFUSED)
    if shared_host:
        refused |= tables.SHARED_IPC
    _numbers(out, "refused", _on(refused, arch), refuse(errno.EPERM))
    _numbers(out, "absent", _on(tables.ABSENT, arch), refuse(errno.ENOSYS))
    _clone(out, arch)
    _ioctl(out, arch)
    _personality(out, arch)
    _prlimit(out, arch)
    _sockets(out, arch, shared_host=shared_host)
    out.give(ALLOW)
    return out.assemble()


def _on(calls: Mapping[str, tables.Number], arch: str) -> list[int]:
    return [number for call in calls.values() if (number := _number(call, arch)) is not None]


def _number(call: tables.Number, arch: str) -> int | None:
    return call.x86_64 if arch == "x86_64" else call.aarch64


def _numbers(out: Assembler, name: str, numbers: Iterable[int], action: int) -> None:
    for number in numbers:
        out.equal(number, name)
    out.jump(f"{name}.end")
    out.label(name)
    out.give(action)
    out.label(f"{name}.end")


def _enter(out: Assembler, name: str, call: tables.Number, arch: str) -> None:
    number = _number(call, arch)
    if number is None:
        raise ValueError(f"{name} has no number on {arch}")
    out.equal(number, None, f"{name}.end")


def _allow_and_end(out: Assembler, name: str, action: int) -> None:
    """Close a block: falling through and ``.allow`` allow, ``.refuse`` does not."""
    out.label(f"{name}.allow")
    out.give(ALLOW)
    out.label(f"{name}.refuse")
    out.give(action)
    out.label(f"{name}.end")


def _clone(out: Assembler, arch: str) -> None:
    _enter(out, "clone", tables.CLONE, arch)
    out.load(_low(0))
    out.any_bit(tables.CLONE_NAMESPACES, "clone.refuse")
    _allow_and_end(out, "clone", refuse(errno.EPERM))


def _ioctl(out: Assembler, arch: str) -> None:
    _enter(out, "ioctl", tables.IOCTL, arch)
    out.load(_low(1))
    for request in (*tables.TERMINAL_REQUESTS.values(), *tables.ATTRIBUTE_REQUESTS.values()):
        out.equal(request, "ioctl.refuse")
    _allow_and_end(out, "ioctl", refuse(errno.EPERM))


def _personality(out: Assembler, arch: str) -> None:
    _enter(out, "personality", tables.PERSONALITY, arch)
    out.load(_low(0))
    for persona in tables.PERSONALITIES:
        out.equal(persona, "personality.allow")
    out.jump("personality.refuse")
    _allow_and_end(out, "personality", refuse(errno.EPERM))


def _prlimit(out: Assembler, arch: str) -> None:
    """Refuse to set another process's limits.

    The kernel compares only user ids here, so a run could otherwise starve the guest, which has
    the same ones.
    """
    _enter(out, "prlimit", tables.PRLIMIT64, arch)
    out.load(_low(0))
    out.equal(0, "prlimit.allow")
    out.load(_low(2))
    out.equal(0, None, "prlimit.refuse")
    out.load(_low(2) + 4)
    out.equal(0, "prlimit.allow", "prlimit.refuse")
    _allow_and_end(out, "prlimit", refuse(errno.EPERM))


def _sockets(out: Assembler, arch: str, *, shared_host: bool) -> None:
    _enter(out, "socketpair", tables.SOCKETPAIR, arch)
    out.load(_low(0))
    out.equal(tables.AF_UNIX, "socketpair.allow", "socketpair.refuse")
    _allow_and_end(out, "socketpair", refuse(errno.EAFNOSUPPORT))
    _enter(out, "socket", tables.SOCKET, arch)
    out.load(_low(0))
    out.equal(tables.AF_UNIX, "socket.allow")
    if not shared_host:
        out.equal(tables.AF_INET, "socket.allow")
        out.equal(tables.AF_INET6, "socket.allow")
        out.equal(tables.AF_NETLINK, None, "socket.refuse")
        out.load(_low(2))
        out.equal(tables.NETLINK_ROUTE, "socket.allow", "socket.refuse")
    else:
        out.jump("socket.refuse")
    _allow_and_end(out, "socket", refuse(errno.EAFNOSUPPORT))
