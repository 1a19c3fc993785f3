"""Attacks on other processes, privileges and namespaces."""

from __future__ import annotations

from codegen_mcp.sandbox.base import IsolationLevel
from codegen_mcp.sandbox.selftest.attack import Attack

_SHARED = (IsolationLevel.PROCESS_HARDENED.value,)

PROCESSES = (
    Attack(
        name="make a user namespace",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man7/user_namespaces.7.html",
        quick=True,
        code="""
def namespace(flags):
    pid = call("clone", flags | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "made"


refused(
    **{
        n: (lambda f=f: child_call("unshare", f))
        for n, f in (
            ("user", 0x10000000),
            ("mount", 0x20000),
            ("net", 0x40000000),
            ("pid", 0x20000000),
            ("all", 0x7E020000),
            ("time", 0x80),
        )
    },
    clone_user=lambda: namespace(0x10000000),
    clone_all=lambda: namespace(0x7E020000),
    clone3=lambda: call("clone3", ctypes.create_string_buffer(88), 88),
)
""",
    ),
    Attack(
        name="enter another process's namespaces",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man2/setns.2.html",
        code="""
refused(
    **{
        n: (lambda n=n: call("setns", os.open(f"/proc/{GUEST}/ns/{n}", os.O_RDONLY), 0))
        for n in ("mnt", "user", "pid", "net")
    },
    pidfd=lambda: call("setns", call("pidfd_open", GUEST, 0), 0x20000),
)
""",
    ),
    Attack(
        name="find the worker's secrets in an environment",
        wall="processes",
        source="https://man7.org/linux/man-pages/man5/proc_pid_environ.5.html",
        quick=True,
        code="""
error, names = attempt(lambda: [n for n in os.listdir("/proc") if n.isdigit()])
if HOST["secret"] in json.dumps({k: v for k, v in os.environ.items() if k != "SELFTEST_HOST"}):
    broken("in our own environment")
for pid in names or [str(GUEST), str(HOST["pid"])]:
    for file in ("environ", "cmdline"):
        if int(pid) == os.getpid():
            continue
        error, data = attempt(lambda: open(f"/proc/{pid}/{file}", "rb").read())
        if data and HOST["secret"].encode() in data:
            broken(file, "of", pid)
held("not in", len(names or ()), "processes")
""",
    ),
    Attack(
        name="use inherited or guessed descriptors",
        wall="processes",
        source="CVE-2024-21626 https://nvd.nist.gov/vuln/detail/CVE-2024-21626 (leaky vessels)",
        quick=True,
        code="""
open_fds = []
for fd in range(3, 1024):
    error, info = attempt(lambda: os.fstat(fd))
    if not error:
        open_fds.append(fd)
        error, n = attempt(lambda: os.write(fd, b"x"))
        if not error:
            broken("wrote to", fd)
held("none") if not open_fds else broken("open:", open_fds)
""",
    ),
    Attack(
        name="see or signal the worker",
        wall="processes",
        source="https://man7.org/linux/man-pages/man2/kill.2.html",
        quick=True,
        code="""
refused(
    worker=lambda: os.kill(HOST["pid"], 0) or "signalled",
    stop=lambda: os.kill(HOST["pid"], signal.SIGCONT) or "signalled",
    pidfd=lambda: call("pidfd_send_signal", call("pidfd_open", HOST["pid"], 0), 0, 0, 0),
    cmdline=lambda: open(f"/proc/{HOST['pid']}/cmdline").read(),
)
""",
    ),
    Attack(
        name="see or signal a neighbour",
        wall="processes",
        source="https://cwe.mitre.org/data/definitions/488.html",
        code="""
refused(
    neighbour=lambda: os.kill(HOST["neighbour_pid"], 0) or "signalled",
    memory=lambda: opened(f"/proc/{HOST['neighbour_pid']}/mem", os.O_RDWR),
    root=lambda: os.listdir(f"/proc/{HOST['neighbour_pid']}/root"),
)
""",
    ),
    Attack(
        name="become root",
        wall="processes",
        source="https://man7.org/linux/man-pages/man2/setuid.2.html",
        quick=True,
        code="""
refused(
    setuid=lambda: os.setuid(0) or "root",
    setgid=lambda: os.setgid(0) or "root",
    setresuid=lambda: os.setresuid(0, 0, 0) or "root",
    groups=lambda: os.setgroups([0]) or "set",
)
""",
    ),
    Attack(
        name="gain from a set-user-ID program",
        wall="processes",
        source="https://docs.kernel.org/userspace-api/no_new_privs.html",
        code="""
import subprocess

got = subprocess.run(
    ["sh", "-c", "for p in su mount passwd chsh newgrp; do command -v $p; done"],
    capture_output=True,
    text=True,
).stdout.split()
done = subprocess.run(["mount", "-t", "tmpfs", "x", "/tmp"], capture_output=True, text=True)
if done.returncode == 0:
    broken("mounted")
if LIBC.prctl(39, 0, 0, 0, 0) != 1:
    broken("no_new_privs is not set")
os.chmod(os.open("planted-suid", os.O_CREAT | os.O_RDWR), 0o6755)
os.unlink("planted-suid")
held(len(got), "programs there;", done.stderr.strip()[-60:])
""",
    ),
    Attack(
        name="hold a capability, or lack the filter",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man7/capabilities.7.html",
        quick=True,
        code="""
header = struct.pack("Ii", 0x20080522, 0)
data = ctypes.create_string_buffer(24)
call("capget", ctypes.create_string_buffer(header), data)
effective, permitted, inheritable = struct.unpack_from("III", data.raw)
if effective or permitted or inheritable or any(struct.unpack_from("III", data.raw, 12)):
    broken("capabilities", data.raw.hex())
bounding = [n for n in range(41) if LIBC.prctl(23, n, 0, 0, 0) == 1]
no_new_privs = LIBC.prctl(39, 0, 0, 0, 0)
if no_new_privs != 1:
    broken("no_new_privs is not set; bounding set", bounding)
if LIBC.prctl(21, 0, 0, 0, 0) != 2:
    broken("no seccomp filter")
held("no capability, filter on, no_new_privs; bounding set of", len(bounding))
""",
    ),
    Attack(
        name="pick up capabilities again through ambient sets or securebits",
        wall="processes",
        source="https://lwn.net/Articles/636533/ (ambient capabilities)",
        code="""
def prctl(*words):
    if LIBC.prctl(*[ctypes.c_ulong(w) for w in (*words, 0, 0, 0, 0)[:5]]) < 0:
        raise OSError(ctypes.get_errno(), "prctl")
    return "set"


refused(
    ambient=lambda: prctl(47, 2, 21),
    securebits=lambda: prctl(28, 0x2F),
    clear_nnp=lambda: prctl(38, 0),
    exe=lambda: prctl(35, 13, os.open("/bin/sh", 0)),
)
""",
    ),
    Attack(
        name="raise limits again, or leave the OOM killer's list",
        wall="processes",
        source="https://man7.org/linux/man-pages/man2/setrlimit.2.html",
        quick=True,
        code="""
def lift(which):
    soft, hard = resource.getrlimit(which)
    if hard == resource.RLIM_INFINITY:
        return "unlimited already"
    resource.setrlimit(which, (soft, hard + 1))
    return "raised"


def score(value):
    with open("/proc/self/oom_score_adj", "w") as f:
        f.write(value)
    return "set"


refused(
    files=lambda: lift(resource.RLIMIT_NOFILE),
    core=lambda: lift(resource.RLIMIT_CORE),
    size=lambda: lift(resource.RLIMIT_FSIZE),
    oom=lambda: score("-500"),
    oom0=lambda: score("0"),
)
""",
    ),
    Attack(
        name="leave the control group",
        wall="processes",
        source="CVE-2022-0492 https://nvd.nist.gov/vuln/detail/CVE-2022-0492 (release_agent)",
        code="""
import glob

found = [p for p in ("/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/cgroup") if os.path.isdir(p)]
refused(
    listing=lambda: [os.listdir(p) for p in found] if found else opened("/none"),
    agent=lambda: open("/sys/fs/cgroup/memory/release_agent", "w"),
    procs=lambda: open("/sys/fs/cgroup/cgroup.procs", "w"),
    mount=lambda: call("mount", text("c"), text("/tmp"), text("cgroup"), 0, text("memory")),
    mount2=lambda: call("mount", text("c"), text("/tmp"), text("cgroup2"), 0, text("")),
)
""",
    ),
    Attack(
        name="use a neighbour's System V memory and message queues",
        wall="processes",
        source="https://man7.org/linux/man-pages/man7/ipc_namespaces.7.html",
        code="""
class Attr(ctypes.Structure):
    _fields_ = [("n", ctypes.c_long * 8)]


refused(
    shm=lambda: call("shmget", HOST["key"], 64, 0),
    queue=lambda: call("mq_open", text(HOST["marker"]), os.O_RDWR, 0, 0),
)
""",
    ),
    Attack(
        name="type into the terminal (TIOCSTI, TIOCLINUX)",
        wall="syscalls",
        source="CVE-2017-5226 https://nvd.nist.gov/vuln/detail/CVE-2017-5226 (bubblewrap)",
        code="""
error, pair = attempt(os.openpty)
fd = pair[0] if pair else 0
high = 1 << 32
refused(
    sti=lambda: fcntl.ioctl(fd, 0x5412, b"x"),
    linux=lambda: fcntl.ioctl(fd, 0x541C, b"\\3"),
    high_bits=lambda: (
        LIBC.ioctl(ctypes.c_int(fd), ctypes.c_ulong(0x5412 | high), text("x")) and opened("/none")
    ),
    line_discipline=lambda: fcntl.ioctl(fd, 0x5423, struct.pack("i", 13)),
)
""",
    ),
    Attack(
        name="stay unconfined in a program run from memory",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man2/memfd_create.2.html",
        code="""
fd = os.memfd_create("planted")
with open(os.path.realpath(sys.executable), "rb") as f:
    while part := f.read(1 << 20):
        os.write(fd, part)
check = (
    "import ctypes; L = ctypes.CDLL(None, use_errno=True);"
    "print(L.prctl(21, 0, 0, 0, 0), L.prctl(39, 0, 0, 0, 0), L.unshare(0x10000000))"
)
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    os.dup2(w, 1)
    error, got = attempt(
        lambda: os.execve(fd, ["python", "-I", "-c", check], {"PYTHONHOME": sys.base_prefix})
    )
    os.write(w, f"exec {error}".encode())
    os._exit(0)
os.close(w)
said = os.read(r, 200).decode().strip()
os.waitpid(pid, 0)
held(said) if said == "2 1 -1" or said.startswith("exec E") else broken(said)
""",
    ),
    Attack(
        name="watch other processes' files (inotify, fanotify)",
        wall="processes",
        source="https://man7.org/linux/man-pages/man7/fanotify.7.html",
        code="""
watch = LIBC.inotify_init()


def inotify(path):
    ctypes.set_errno(0)
    if LIBC.inotify_add_watch(watch, path.encode(), 0xFFF) < 0:
        raise OSError(ctypes.get_errno(), path)
    return "watching " + path


refused(
    fanotify=lambda: call("fanotify_init", 0, 0),
    state=lambda: inotify(HOST["state"]),
    neighbour=lambda: inotify(HOST["neighbour"]),
    shadow=lambda: inotify("/etc/shadow"),
)
""",
        gaps={"shared-user": "Landlock does not cover inotify; a uid for each session does"},
    ),
)
