"""The system call filter, executed for both architectures."""

import errno
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from codegen_mcp.sandbox import seccomp
from codegen_mcp.sandbox import seccomp_tables as tables

X86_64, AARCH64, I386, ARM = 0xC000003E, 0xC00000B7, 0x40000003, 0x40000028
MACHINES = {"x86_64": X86_64, "aarch64": AARCH64}


@dataclass(frozen=True)
class Call:
    machine: int
    number: int
    arguments: tuple[int, ...] = ()

    def data(self) -> bytes:
        arguments = (*self.arguments, *[0] * (6 - len(self.arguments)))
        wide = [argument & (1 << 64) - 1 for argument in arguments]
        return struct.pack("<IIQ6Q", self.number & 0xFFFFFFFF, self.machine, 0, *wide)


def execute(program: bytes, call: Call) -> int:
    """Return the action that the program gives for the call."""
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    data, accumulator, position = call.data(), 0, 0
    for _ in range(len(code) + 1):
        operation, then, otherwise, value = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return value
        elif operation == 0x05:
            position += value
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[operation]
            position += then if holds else otherwise
    raise AssertionError("the program does not end")


EPERM = seccomp.refuse(errno.EPERM)
ENOSYS = seccomp.refuse(errno.ENOSYS)
NO_FAMILY = seccomp.refuse(errno.EAFNOSUPPORT)

ORDINARY = {
    "read": (0, 63),
    "write": (1, 64),
    "openat": (257, 56),
    "execve": (59, 221),
    "futex": (202, 98),
    "mmap": (9, 222),
    "getrandom": (318, 278),
    "seccomp": (317, 277),
    "landlock_restrict_self": (446, 446),
    "pidfd_open": (434, 434),
    "kill": (62, 129),
    "fchmodat2": (452, 452),
}


@pytest.fixture(params=["x86_64", "aarch64"])
def arch(request):
    return request.param


def answer(arch, number, *arguments, **options):
    program = seccomp.build(arch, **options)
    return execute(program, Call(MACHINES[arch], number, arguments))


def number(arch, call):
    return getattr(call, arch)


def test_ordinary_calls_are_allowed(arch):
    index = 0 if arch == "x86_64" else 1
    for shared_host in (False, True):
        program = seccomp.build(arch, shared_host=shared_host)
        for numbers in ORDINARY.values():
            call = Call(MACHINES[arch], numbers[index])
            assert execute(program, call) == seccomp.ALLOW


def test_every_refused_call_fails_with_eperm(arch):
    for name, call in tables.REFUSED.items():
        if number(arch, call) is not None:
            assert answer(arch, number(arch, call)) == EPERM, name


def test_every_absent_call_fails_with_enosys(arch):
    for name, call in tables.ABSENT.items():
        assert answer(arch, number(arch, call)) == ENOSYS, name


def test_calls_newer_than_the_table_fail_with_enosys(arch):
    assert answer(arch, tables.NEWEST) != ENOSYS
    assert answer(arch, tables.NEWEST + 1) == ENOSYS
    assert answer(arch, 520) == ENOSYS


def test_another_architecture_is_killed(arch):
    program = seccomp.build(arch)
    for machine in (I386, ARM, MACHINES["aarch64" if arch == "x86_64" else "x86_64"]):
        assert execute(program, Call(machine, 39)) == seccomp.KILL_PROCESS


def test_x32_calls_are_killed():
    assert answer("x86_64", tables.X32_BIT + 39) == seccomp.KILL_PROCESS
    assert answer("x86_64", -1) == seccomp.KILL_PROCESS


@pytest.mark.parametrize("flag", [1 << bit for bit in (17, 25, 26, 27, 28, 29, 30)])
def test_clone_with_any_namespace_flag_is_refused(arch, flag):
    sigchld = 17
    assert answer(arch, number(arch, tables.CLONE), flag | sigchld) == EPERM


def test_clone_for_threads_and_fork_is_allowed(arch):
    for flags in (17, 0x3D0F00, 0x1200011, 0x4111):
        assert answer(arch, number(arch, tables.CLONE), flags) == seccomp.ALLOW


def test_terminal_injection_is_refused_also_with_high_bits_set(arch):
    ioctl = number(arch, tables.IOCTL)
    for request in tables.TERMINAL_REQUESTS.values():
        assert answer(arch, ioctl, 0, request) == EPERM
        assert answer(arch, ioctl, 0, request | 1 << 32) == EPERM
    assert answer(arch, ioctl, 0, 0x5401) == seccomp.ALLOW


def test_a_file_cannot_leave_its_project_and_so_its_quota(arch):
    ioctl = number(arch, tables.IOCTL)
    for request in tables.ATTRIBUTE_REQUESTS.values():
        assert answer(arch, ioctl, 0, request) == EPERM
    assert answer(arch, number(arch, tables.REFUSED["file_setattr"])) == EPERM


def test_only_local_internet_and_route_sockets_can_be_made(arch):
    socket = number(arch, tables.SOCKET)
    for family in (1, 2, 10):
        assert answer(arch, socket, family, 1, 0) == seccomp.ALLOW
        assert answer(arch, socket, family | 1 << 40, 1, 0) == seccomp.ALLOW
    assert answer(arch, socket, 16, 3, 0) == seccomp.ALLOW
    for protocol in (4, 9, 12, 15, 16):
        assert answer(arch, socket, 16, 3, protocol) == NO_FAMILY
    for family in (0, 3, 4, 9, 15, 17, 21, 31, 38, 40, 44, 45):
        assert answer(arch, socket, family, 1, 0) == NO_FAMILY


def test_only_local_socket_pairs_can_be_made(arch):
    assert answer(arch, number(arch, tables.SOCKETPAIR), 1, 1, 0) == seccomp.ALLOW
    assert answer(arch, number(arch, tables.SOCKETPAIR), 30, 1, 0) == NO_FAMILY


def test_without_namespaces_only_local_sockets_can_be_made(arch):
    socket = number(arch, tables.SOCKET)
    assert answer(arch, socket, 1, 1, 0, shared_host=True) == seccomp.ALLOW
    for family in (2, 10, 16, 17, 40):
        assert answer(arch, socket, family, 1, 0, shared_host=True) == NO_FAMILY


def test_without_namespaces_system_v_ipc_and_message_queues_are_refused(arch):
    for name, call in tables.SHARED_IPC.items():
        assert answer(arch, number(arch, call)) == seccomp.ALLOW, name
        assert answer(arch, number(arch, call), shared_host=True) == EPERM, name


def test_personalities_that_switch_off_defences_are_refused(arch):
    personality = number(arch, tables.PERSONALITY)
    for persona in tables.PERSONALITIES:
        assert answer(arch, personality, persona) == seccomp.ALLOW
    for persona in (0x40000, 0x100000, 0x400000):
        assert answer(arch, personality, persona) == EPERM


def test_limits_of_other_processes_can_be_read_but_not_set(arch):
    prlimit = number(arch, tables.PRLIMIT64)
    assert answer(arch, prlimit, 0, 7, 0xDEAD0000, 0) == seccomp.ALLOW
    assert answer(arch, prlimit, 1, 7, 0, 0xDEAD0000) == seccomp.ALLOW
    assert answer(arch, prlimit, 1, 7, 0xDEAD0000, 0) == EPERM
    assert answer(arch, prlimit, 1, 7, 0x7F00_00000000, 0) == EPERM


def test_an_unknown_machine_is_named(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "sparc64")
    with pytest.raises(seccomp.SandboxUnavailable, match="sparc64"):
        seccomp.machine()


def test_the_filter_of_this_machine_is_the_default():
    assert seccomp.build() == seccomp.build(seccomp.machine())


def test_every_jump_lands_inside_the_program(arch):
    program = seccomp.build(arch, shared_host=True)
    length = len(program) // 8
    assert length < 4096
    for position in range(length):
        operation, then, otherwise, value = struct.unpack_from("<HBBI", program, position * 8)
        if operation & 7 == 5:
            far = value if operation == 5 else max(then, otherwise)
            assert position + 1 + far < length


def test_the_assembler_refuses_labels_that_cannot_be_reached():
    missing = seccomp.Assembler()
    missing.equal(1, "nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        missing.assemble()
    far = seccomp.Assembler()
    far.equal(1, "far")
    for _ in range(256):
        far.load(0)
    far.label("far")
    far.give(0)
    with pytest.raises(ValueError, match="out of reach"):
        far.assemble()
    behind = seccomp.Assembler()
    behind.label("start")
    behind.load(0)
    behind.jump("start")
    with pytest.raises(ValueError, match="behind"):
        behind.assemble()
    twice = seccomp.Assembler()
    twice.label("a")
    with pytest.raises(ValueError, match="twice"):
        twice.label("a")


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
RENAMED = {"umount": "umount2", "sendfile64": "sendfile", "fstatfs64": "fstatfs"}


def test_the_numbers_are_those_of_the_kernel_headers(arch):
    header = HEADERS[arch]
    if not header.exists():
        pytest.skip(f"{header} is not installed (linux-libc-dev)")
    pattern = re.compile(r"#define __NR3?_?(?:3264_)?(\w+)\s+(\d+)")
    known = {name: int(value) for name, value in pattern.findall(header.read_text())}
    calls = {**tables.REFUSED, **tables.ABSENT, **tables.SHARED_IPC}
    calls |= {"clone": tables.CLONE, "ioctl": tables.IOCTL, "socket": tables.SOCKET}
    calls |= {"socketpair": tables.SOCKETPAIR, "personality": tables.PERSONALITY}
    calls |= {"prlimit64": tables.PRLIMIT64}
    compared = 0
    for name, call in calls.items():
        mine = number(arch, call)
        if mine is not None and name in known:
            assert known[name] == mine, name
            compared += 1
        elif mine is None:
            assert name not in known, name
    assert compared > 60


def test_the_kernel_accepts_and_obeys_the_filter():
    """In a forked child: a real prctl, then a refused, an absent and an ordinary call."""
    import ctypes

    program = seccomp.build()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            code = ctypes.create_string_buffer(program)
            fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
            buffer = ctypes.create_string_buffer(fprog)
            zero = ctypes.c_ulong(0)
            libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero)
            installed = libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(buffer), zero, zero)
            index = seccomp.machine()
            seen = [installed]
            for call in (tables.REFUSED["keyctl"], tables.ABSENT["clone3"]):
                ctypes.set_errno(0)
                libc.syscall(ctypes.c_long(number(index, call)), zero, zero, zero, zero)
                seen.append(ctypes.get_errno())
            os.write(writer, repr([*seen, os.getppid() > 0]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    said = os.read(reader, 200).decode()
    os.close(reader)
    os.waitpid(pid, 0)
    assert said == repr([0, errno.EPERM, errno.ENOSYS, True])
