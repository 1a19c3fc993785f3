"""Attacks on the kernel itself: sysctls, rare calls, other architectures' calls."""

from __future__ import annotations

from codegen_mcp.sandbox.selftest.attack import Attack

KERNEL = (
    Attack(
        name="write kernel settings (core_pattern)",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man5/core.5.html",
        quick=True,
        code="""
refused(
    **{
        n.split("/")[-1]: (lambda n=n: opened("/proc/sys/" + n, os.O_WRONLY))
        for n in (
            "kernel/core_pattern",
            "kernel/hostname",
            "kernel/modprobe",
            "vm/drop_caches",
            "kernel/ns_last_pid",
            "vm/overcommit_memory",
            "net/ipv4/ip_forward",
            "fs/binfmt_misc/register",
        )
    }
)
""",
    ),
    Attack(
        name="read kernel memory and logs, press SysRq",
        wall="filesystem",
        source="https://docs.kernel.org/admin-guide/sysrq.html",
        code="""
refused(
    kcore=lambda: open("/proc/kcore", "rb").read(16) or opened("/none"),
    kmsg=lambda: opened("/proc/kmsg"),
    sysrq=lambda: opened("/proc/sysrq-trigger", os.O_WRONLY),
    devkmsg=lambda: opened("/dev/kmsg"),
    port=lambda: opened("/dev/port"),
    dmesg=lambda: call("syslog", 3, ctypes.create_string_buffer(64), 64),
    clear=lambda: call("syslog", 5, 0, 0),
)
""",
    ),
    Attack(
        name="read kernel addresses",
        wall="filesystem",
        source="https://docs.kernel.org/admin-guide/sysctl/kernel.html#kptr-restrict",
        code="""
for path in ("/proc/kallsyms", "/proc/modules", "/proc/self/stack"):
    error, lines = attempt(lambda: open(path).read(20000).splitlines())
    for line in lines or ():
        word = line.split()[0] if path.endswith("kallsyms") and line.split() else "0"
        if int(word, 16):
            broken(path, line)
held("no address shown")
""",
    ),
    Attack(
        name="use the kernel's keyring",
        wall="syscalls",
        source="CVE-2016-0728 https://nvd.nist.gov/vuln/detail/CVE-2016-0728",
        code="""
refused(
    keyctl=lambda: call("keyctl", 0, -3, 0),
    add=lambda: call("add_key", text("user"), text("a"), text("b"), 1, -3),
    request=lambda: call("request_key", text("user"), text("a"), 0, -3),
)
""",
    ),
    Attack(
        name="load BPF, count events, handle page faults",
        wall="syscalls",
        source="CVE-2021-3490 (eBPF), CVE-2013-2094 (perf), CVE-2021-22555 (userfaultfd as a tool)",
        quick=True,
        code="""
refused(
    bpf=lambda: call("bpf", 0, ctypes.create_string_buffer(72), 72),
    perf=lambda: call(
        "perf_event_open", ctypes.create_string_buffer(struct.pack("II", 1, 112), 112), 0, -1, -1, 0
    ),
    userfaultfd=lambda: call("userfaultfd", 1),
)
""",
    ),
    Attack(
        name="use io_uring",
        wall="syscalls",
        source="https://security.googleblog.com/2023/06/learnings-from-kctf-vrps-42-linux.html",
        quick=True,
        code="""
refused(
    setup=lambda: call("io_uring_setup", 4, ctypes.create_string_buffer(120)),
    register=lambda: call("io_uring_register", 0, 0, 0, 0),
    enter=lambda: call("io_uring_enter", 0, 1, 0, 0, 0, 0),
)
""",
    ),
    Attack(
        name="call through the 32-bit and x32 doors",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man2/seccomp.2.html (architectures)",
        code="""
import platform

if platform.machine() != "x86_64":
    held("this machine has neither")


def i386():
    m = mmap.mmap(-1, 4096, prot=7)
    m.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))
    return "pid %d" % function()


seen = {"i386": child(i386), "x32": child(lambda: LIBC.syscall(ctypes.c_long(0x40000000 + 39)))}
bad = {n: s for n, s in seen.items() if s[1] not in (signal.SIGSYS, signal.SIGSEGV)}
broken(bad) if bad else held({n: signal.Signals(s[1]).name for n, s in seen.items()})
""",
    ),
    Attack(
        name="administer the machine",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man7/capabilities.7.html (CAP_SYS_ADMIN)",
        code="""
buffer = ctypes.create_string_buffer(256)
refused(
    clock=lambda: call("clock_settime", 0, buffer),
    reboot=lambda: call("reboot", 0, 0, 0, 0),
    kexec=lambda: call("kexec_load", 0, 0, 0, 0),
    module=lambda: call("init_module", buffer, 8, text("")),
    finit=lambda: call("finit_module", 0, text(""), 0),
    swap=lambda: call("swapon", text("/tmp"), 0),
    acct=lambda: call("acct", text("/tmp/acct")),
    name=lambda: call("sethostname", text("x"), 1),
    quota=lambda: call("quotactl", 0, 0, 0, 0),
    iopl=lambda: call("iopl", 3),
)
""",
    ),
    Attack(
        name="switch off address randomisation",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man2/personality.2.html",
        code="""
def persona(value):
    ctypes.set_errno(0)
    if LIBC.personality(ctypes.c_ulong(value)) < 0:
        raise OSError(ctypes.get_errno(), "personality")
    return "set"


refused(
    no_random=lambda: persona(0x40000),
    read_implies_exec=lambda: persona(0x400000),
    mmap_zero=lambda: persona(0x100000),
)
""",
    ),
    Attack(
        name="map page zero and patch segments",
        wall="syscalls",
        source="CVE-2017-17053 (modify_ldt); https://wiki.debian.org/mmap_min_addr",
        code="""
def fixed():
    LIBC.mmap.restype = ctypes.c_long
    ctypes.set_errno(0)
    at = LIBC.mmap(ctypes.c_void_p(0), ctypes.c_size_t(4096), 3, 0x32, -1, ctypes.c_long(0))
    if at == -1:
        raise OSError(ctypes.get_errno(), "mmap")
    return "mapped at zero" if at == 0 else opened("/none")


refused(ldt=lambda: call("modify_ldt", 0, ctypes.create_string_buffer(16), 16), zero=fixed)
""",
    ),
    Attack(
        name="read another process's memory across the guest's wall",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man2/process_vm_readv.2.html",
        code="""
b = ctypes.create_string_buffer(8)
local = (ctypes.c_size_t * 2)(ctypes.addressof(b), 8)
remote = (ctypes.c_size_t * 2)(0x400000, 8)
refused(
    readv=lambda: call("process_vm_readv", GUEST, local, 1, remote, 1, 0),
    writev=lambda: call("process_vm_writev", GUEST, local, 1, remote, 1, 0),
    kcmp=lambda: call("kcmp", GUEST, os.getpid(), 0, 0, 0),
    madvise=lambda: call("process_madvise", call("pidfd_open", GUEST, 0), remote, 1, 21, 0),
    move=lambda: call("move_pages", GUEST, 0, 0, 0, 0, 0),
)
""",
    ),
    Attack(
        name="splice user pages into a pipe (vmsplice)",
        wall="syscalls",
        source="CVE-2008-0600 https://nvd.nist.gov/vuln/detail/CVE-2008-0600",
        code="""
r, w = os.pipe()
b = ctypes.create_string_buffer(4096)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(b), 4096)
refused(
    vmsplice=lambda: call("vmsplice", w, vector, 1, 0),
    remap=lambda: call("remap_file_pages", 0, 0, 0, 0, 0),
    secret=lambda: call("memfd_secret", 0),
    lookup=lambda: call("lookup_dcookie", 0, 0, 0),
)
""",
    ),
)
