"""Attacks on the guest: after each of them the next run must be served."""

from __future__ import annotations

from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.base import IsolationLevel
from codegen_mcp.sandbox.selftest.attack import Attack

_INIT = "https://man7.org/linux/man-pages/man7/pid_namespaces.7.html"
_DUMPABLE = "https://man7.org/linux/man-pages/man2/PR_SET_DUMPABLE.2const.html"
_NO_INIT = dict.fromkeys(
    (IsolationLevel.PROCESS_HARDENED.value,),
    "without a PID namespace the guest can be killed by its own code: the session is booted anew",
)
_ALIVE = """held("and the next run was served")"""
_ENDED = (EndedBy.EXIT, EndedBy.SIGNAL)
_BOMB = (EndedBy.EXIT, EndedBy.SIGNAL, EndedBy.PIDS, EndedBy.MEMORY)

GUEST = (
    Attack(
        name="kill the guest",
        wall="processes",
        source=_INIT,
        quick=True,
        gaps=_NO_INIT,
        code="os.kill(GUEST, 9)",
        ends_by=_ENDED,
        then=_ALIVE,
    ),
    Attack(
        name="send the guest every signal",
        wall="processes",
        source=_INIT,
        gaps=_NO_INIT,
        code="""
for number in range(1, 65):
    attempt(lambda: os.kill(GUEST, number))
""",
        ends_by=_ENDED,
        then=_ALIVE,
    ),
    Attack(
        name="stop the guest",
        wall="processes",
        source=_INIT,
        gaps=_NO_INIT,
        code="os.kill(GUEST, signal.SIGSTOP)",
        ends_by=(*_ENDED, EndedBy.WORKER_LOST, EndedBy.TIMEOUT),
        then=_ALIVE,
        timeout_s=1,
    ),
    Attack(
        name="kill everything that can be signalled",
        wall="processes",
        source="https://man7.org/linux/man-pages/man2/kill.2.html",
        gaps=_NO_INIT,
        code="""
os.kill(-1, 9)
os.kill(0, 9)
""",
        ends_by=_ENDED,
        then=_ALIVE,
    ),
    Attack(
        name="signal the guest through its pidfd",
        wall="processes",
        source="https://man7.org/linux/man-pages/man2/pidfd_send_signal.2.html",
        gaps=_NO_INIT,
        code="""call("pidfd_send_signal", call("pidfd_open", GUEST, 0), 9, 0, 0)""",
        ends_by=_ENDED,
        then=_ALIVE,
    ),
    Attack(
        name="have the kernel signal the guest (F_SETOWN, F_SETSIG)",
        wall="processes",
        source="https://man7.org/linux/man-pages/man2/F_SETSIG.2const.html",
        code="""
a, b = socket.socketpair()
fcntl.fcntl(a, fcntl.F_SETOWN, GUEST)
fcntl.fcntl(a, 10, 9)
fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)
b.send(b"x")
""",
        ends_by=_ENDED,
        then=_ALIVE,
        gaps=_NO_INIT,
    ),
    Attack(
        name="open the guest's memory",
        wall="processes",
        source=_DUMPABLE,
        code="""
refused(
    write=lambda: opened(f"/proc/{GUEST}/mem", os.O_RDWR),
    read=lambda: opened(f"/proc/{GUEST}/mem"),
    auxv=lambda: open(f"/proc/{GUEST}/auxv", "rb").read(1),
)
""",
        then=_ALIVE,
    ),
    Attack(
        name="read the guest's environment, maps and descriptors",
        wall="processes",
        source=_DUMPABLE,
        quick=True,
        code="""
refused(
    environ=lambda: open(f"/proc/{GUEST}/environ").read(),
    maps=lambda: open(f"/proc/{GUEST}/maps").read(),
    fds=lambda: os.listdir(f"/proc/{GUEST}/fd"),
    root=lambda: os.readlink(f"/proc/{GUEST}/root"),
    cwd=lambda: os.readlink(f"/proc/{GUEST}/cwd"),
    exe=lambda: os.readlink(f"/proc/{GUEST}/exe"),
    map_files=lambda: os.listdir(f"/proc/{GUEST}/map_files"),
)
""",
        then=_ALIVE,
    ),
    Attack(
        name="trace the guest",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man2/ptrace.2.html",
        quick=True,
        code="""
refused(
    attach=lambda: call("ptrace", 16, GUEST, 0, 0),
    seize=lambda: call("ptrace", 0x4206, GUEST, 0, 0),
)
""",
        then=_ALIVE,
    ),
    Attack(
        name="read the guest with process_vm_readv",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man2/process_vm_readv.2.html",
        code="""
b = ctypes.create_string_buffer(8)
local = (ctypes.c_size_t * 2)(ctypes.addressof(b), 8)
refused(
    readv=lambda: call(
        "process_vm_readv", GUEST, local, 1, (ctypes.c_size_t * 2)(0x400000, 8), 1, 0
    )
)
""",
        then=_ALIVE,
    ),
    Attack(
        name="steal the control socket (pidfd_getfd)",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man2/pidfd_getfd.2.html",
        code="""
pidfd = call("pidfd_open", GUEST, 0)
refused(**{f"fd{n}": (lambda n=n: call("pidfd_getfd", pidfd, n, 0)) for n in range(3, 20)})
""",
        then=_ALIVE,
    ),
    Attack(
        name="answer in the guest's place through a leaked descriptor",
        wall="processes",
        source="https://man7.org/linux/man-pages/man7/unix.7.html (SCM_RIGHTS)",
        code="""
forged = b"\\x04\\0\\0\\0exit\\x01\\0\\0\\0" + b"1\\x01\\0\\0\\0" + b"0\\x01\\0\\0\\0" + b"0"
for fd in range(3, 300):
    for send in (
        lambda: os.write(fd, forged),
        lambda: socket.socket(fileno=os.dup(fd)).send(forged),
    ):
        error, got = attempt(send)
        if not error:
            broken("wrote to", fd)
held("no descriptor takes it")
""",
        then=_ALIVE,
    ),
    Attack(
        name="have descriptors passed to the guest (SCM_RIGHTS smuggling)",
        wall="processes",
        source="https://googleprojectzero.blogspot.com/2022/08/the-quantum-state-of-linux-kernel.html",
        code="""
import array

a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for _ in range(200):
    a.sendmsg(
        [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [a.fileno(), b.fileno()]))]
    )
    for _, _, data in b.recvmsg(1, 4096)[1]:
        for fd in array.array("i", data):
            os.close(fd)
refused(guest=lambda: socket.socket(socket.AF_UNIX).connect(f"/proc/{GUEST}/fd/3"))
""",
        then=_ALIVE,
    ),
    Attack(
        name="leave a fork bomb behind",
        may_lose_guest=True,
        wall="pids",
        source="https://man7.org/linux/man-pages/man2/fork.2.html",
        code="""
n = 0
while n < 400:
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(100)
            os._exit(0)
        n += 1
    except OSError as error:
        break
print("left", n)
""",
        ends_by=_BOMB,
        then=_ALIVE,
    ),
    Attack(
        name="leave a daemon behind that closed everything",
        wall="processes",
        source="https://man7.org/linux/man-pages/man7/daemon.7.html",
        code="""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 100)
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        time.sleep(1000)
    os._exit(0)
""",
        then="""
error, names = attempt(lambda: [int(n) for n in os.listdir("/proc") if n.isdigit()])
others = [n for n in names or () if n not in (1, os.getpid())]
seen = []
for n in others:
    error, words = attempt(lambda: open(f"/proc/{n}/cmdline", "rb").read().split(b"\\0"))
    error, stat = attempt(lambda: open(f"/proc/{n}/stat").read().rsplit(")", 1)[1].split())
    if (
        stat
        and int(stat[1]) == 1
        and int(stat[19]) < int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19]) - 200
    ):
        seen.append(n)
held("gone; other processes:", len(others))
""",
    ),
    Attack(
        name="run for ever",
        wall="wall_time",
        source="https://cwe.mitre.org/data/definitions/835.html",
        code="while True: pass",
        ends_by=(EndedBy.TIMEOUT,),
        timeout_s=0.5,
        then=_ALIVE,
    ),
    Attack(
        name="dodge the time-out with setsid and ignored signals",
        wall="wall_time",
        source="https://man7.org/linux/man-pages/man7/signal.7.html",
        code="""
for number in range(1, 32):
    attempt(lambda: signal.signal(number, signal.SIG_IGN))
os.fork() or (os.setsid(), time.sleep(100))
while True:
    pass
""",
        ends_by=(EndedBy.TIMEOUT,),
        timeout_s=0.5,
        then=_ALIVE,
    ),
    Attack(
        name="starve the guest by its limits (prlimit)",
        wall="syscalls",
        source="https://man7.org/linux/man-pages/man2/prlimit.2.html",
        quick=True,
        code="""
new = ctypes.create_string_buffer(struct.pack("QQ", 0, 0))
refused(
    **{
        n: (lambda w=w: call("prlimit64", GUEST, w, new, 0))
        for n, w in (("files", 7), ("cpu", 0), ("memory", 9), ("processes", 6))
    }
)
""",
        then=_ALIVE,
    ),
    Attack(
        name="make the guest the OOM killer's first choice",
        wall="processes",
        source="https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html",
        code="""refused(score=lambda: open(f"/proc/{GUEST}/oom_score_adj", "w").write("1000"))""",
        then=_ALIVE,
    ),
    Attack(
        name="slow the guest down for good",
        wall="processes",
        source="https://man7.org/linux/man-pages/man2/sched_setattr.2.html",
        code="""
start = time.monotonic()
attempt(lambda: os.setpriority(os.PRIO_PROCESS, GUEST, 19))
attempt(lambda: os.sched_setscheduler(GUEST, os.SCHED_IDLE, os.sched_param(0)))
attempt(lambda: os.sched_setaffinity(GUEST, {0}))
""",
        then=_ALIVE,
    ),
    Attack(
        name="overwrite the guest's program",
        wall="filesystem",
        source="CVE-2019-5736 https://nvd.nist.gov/vuln/detail/CVE-2019-5736",
        code="""
refused(
    **{
        n.replace(".", "_"): (lambda n=n: open(HOST["guest"] + "/" + n, "r+b"))
        for n in ("main.py", "loop.py", "spare.py")
    },
    new=lambda: open(HOST["guest"] + "/json.py", "w"),
    unlink=lambda: os.unlink(HOST["guest"] + "/main.py"),
)
""",
        then=_ALIVE,
    ),
)
