"""Bombs: each ends at its limit, says why, and leaves a sandbox that serves."""

from __future__ import annotations

from codegen_mcp.core.task import EndedBy
from codegen_mcp.sandbox.selftest.attack import Attack

_MEMORY = "https://docs.kernel.org/admin-guide/cgroup-v2.html#memory"
_RLIMIT = "https://man7.org/linux/man-pages/man2/setrlimit.2.html"
_ALIVE = """held("and the next run was served")"""
_EATEN = (EndedBy.MEMORY,)
_EACH = {"no-memory-group": "without a control group RLIMIT_AS bounds each process alone"}
_PIDS = (EndedBy.EXIT, EndedBy.PIDS, EndedBy.SIGNAL)

LIMITS = (
    Attack(
        name="take all memory",
        may_lose_guest=True,
        wall="memory",
        source=_MEMORY,
        code="""
a = []
try:
    while True:
        a.append(bytearray(16 << 20))
except MemoryError:
    n = len(a)
    a.clear()
    held("refused after", n * 16, "MiB")
""",
        ends_by=(EndedBy.EXIT, EndedBy.MEMORY),
        then=_ALIVE,
    ),
    Attack(
        name="take all memory with eight processes",
        may_lose_guest=True,
        wall="memory",
        gaps=_EACH,
        source=_MEMORY,
        code="""
for _ in range(8):
    if os.fork() == 0:
        b = bytearray(100 << 20)
        time.sleep(2)
        os._exit(0)
broken(sum(os.wait()[1] == 0 for _ in range(8)), "of 8 processes had 100 MiB each")
""",
        ends_by=_EATEN,
        then=_ALIVE,
    ),
    Attack(
        name="fill /tmp and /dev/shm",
        may_lose_guest=True,
        wall="memory",
        source="https://man7.org/linux/man-pages/man5/tmpfs.5.html",
        code="""
import tempfile

n = 0
for directory in {tempfile.gettempdir(), "/dev/shm"}:
    with open(directory + "/planted-fill", "wb") as f:
        try:
            while n < 4096:
                f.write(b"x" * (1 << 20))
                n += 1
        except OSError as error:
            print(directory, n, error)
    os.unlink(directory + "/planted-fill")
broken(n, "MiB written") if n >= 4096 else held("refused after", n, "MiB")
""",
        ends_by=(EndedBy.EXIT, EndedBy.MEMORY, EndedBy.DISK),
        then="""
import tempfile

for directory in (tempfile.gettempdir(), "/dev/shm"):
    attempt(lambda: os.unlink(directory + "/planted-fill"))
held("and the next run was served")
""",
    ),
    Attack(
        name="hide memory in memfds",
        may_lose_guest=True,
        wall="memory",
        gaps=_EACH,
        source="https://man7.org/linux/man-pages/man2/memfd_create.2.html",
        code="""
fds = []
for _ in range(32):
    fds.append(os.memfd_create("x"))
    for _ in range(16):
        os.write(fds[-1], b"x" * (1 << 20))
broken(len(fds) * 16, "MiB")
""",
        ends_by=_EATEN,
        then=_ALIVE,
    ),
    Attack(
        name="hide memory in pipes",
        may_lose_guest=True,
        wall="memory",
        source="https://man7.org/linux/man-pages/man7/pipe.7.html",
        code="""
pipes, n = [], 0
try:
    while n < 2000:
        r, w = os.pipe()
        pipes.append((r, w))
        os.set_blocking(w, False)
        attempt(lambda: fcntl.fcntl(w, 1031, 1 << 20))
        try:
            while True:
                n += os.write(w, b"x" * 65536) / (1 << 20)
        except BlockingIOError:
            pass
except OSError as error:
    for r, w in pipes:
        os.close(r)
        os.close(w)
    held("refused after", int(n), "MiB:", error)
broken(int(n), "MiB")
""",
        ends_by=(EndedBy.EXIT, EndedBy.MEMORY),
        then=_ALIVE,
    ),
    Attack(
        name="fork without end",
        may_lose_guest=True,
        wall="pids",
        source="https://docs.kernel.org/admin-guide/cgroup-v2.html#pid",
        code="""
n = 0
try:
    while n < 5000:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        n += 1
except OSError as error:
    held("refused after", n, error)
broken(n, "processes")
""",
        ends_by=_PIDS,
        then=_ALIVE,
    ),
    Attack(
        name="fork exponentially",
        may_lose_guest=True,
        wall="pids",
        source="https://en.wikipedia.org/wiki/Fork_bomb",
        code="""
while True:
    attempt(os.fork)
""",
        ends_by=(EndedBy.TIMEOUT, EndedBy.PIDS, EndedBy.MEMORY),
        timeout_s=1,
        then=_ALIVE,
    ),
    Attack(
        name="start threads without end",
        wall="pids",
        source="https://docs.kernel.org/admin-guide/cgroup-v2.html#pid",
        code="""
import _thread  # threading's start() waits for ever for a thread that dies of MemoryError

n = 0
try:
    while n < 5000:
        _thread.start_new_thread(time.sleep, (30,))
        n += 1
    os.write(1, b"BROKEN 5000 threads\\n")
except (RuntimeError, OSError, MemoryError):
    os.write(1, b"HELD refused after %d threads\\n" % n)
os._exit(0)
""",
        ends_by=_PIDS,
        then=_ALIVE,
    ),
    Attack(
        name="print without end",
        wall="output",
        source="https://cwe.mitre.org/data/definitions/400.html",
        code="""
b = b"x" * 65536
while True:
    os.write(1, b)
""",
        ends_by=(EndedBy.OUTPUT,),
        then=_ALIVE,
    ),
    Attack(
        name="hold standard output open in a child",
        wall="wall_time",
        source="https://bugs.python.org/issue30154 (communicate hangs on a grandchild)",
        code="""
if os.fork() == 0:
    os.setsid()
    time.sleep(100)
    os._exit(0)
held("returned")
""",
        then=_ALIVE,
        timeout_s=5,
    ),
    Attack(
        name="write more than the disk limit",
        wall="disk",
        gaps={"no-disk-limit": "the self-test was given no volume that bounds its size"},
        source="https://man7.org/linux/man-pages/man2/fallocate.2.html",
        code="""
n, error = 0, None
for i in range(4):
    try:
        with open(f"planted-big-{i}", "wb") as f:
            for _ in range(32):
                f.write(b"0" * (1 << 20))
                n += 1
    except OSError as e:
        error = e
        break
for i in range(4):
    attempt(lambda: os.unlink(f"planted-big-{i}"))
held(n, "MiB, then", error) if error else broken(n, "MiB written")
""",
        ends_by=(EndedBy.EXIT, EndedBy.DISK),
        then=_ALIVE,
        timeout_s=20,
    ),
    Attack(
        name="make more files than the disk has room for",
        wall="disk",
        source="https://man7.org/linux/man-pages/man5/ext4.5.html (inodes)",
        gaps={"no-disk-limit": "the self-test was given no volume that bounds its size"},
        code="""
n, error = 0, None
os.mkdir("planted-files")
try:
    while n < 30000:
        os.close(os.open(f"planted-files/{n}", os.O_CREAT | os.O_WRONLY))
        n += 1
except OSError as e:
    error = e
import shutil

shutil.rmtree("planted-files")
held(n, "files, then", error) if error else broken(n, "files made")
""",
        ends_by=(EndedBy.EXIT, EndedBy.DISK),
        then=_ALIVE,
        timeout_s=30,
    ),
    Attack(
        name="make a file longer than allowed",
        wall="file_size",
        source=_RLIMIT,
        code="""
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fd = os.open("planted-sparse", os.O_CREAT | os.O_RDWR)
try:
    refused(
        sparse=lambda: os.ftruncate(fd, 1 << 40) or "made", far=lambda: os.pwrite(fd, b"x", 1 << 40)
    )
finally:
    os.unlink("planted-sparse")
""",
        then=_ALIVE,
    ),
    Attack(
        name="open files without end",
        wall="open_files",
        source=_RLIMIT,
        code="""
n = 0
try:
    while n < 100000:
        os.open("/dev/null", os.O_RDONLY)
        n += 1
except OSError as error:
    os.closerange(3, 1 << 17)
    held("refused after", n, error)
broken(n)
""",
        then=_ALIVE,
    ),
    Attack(
        name="use every processor",
        wall="cpu",
        gaps={"no-cpu-group": "only a control group bounds CPU bandwidth"},
        depends_on_load=True,
        source="https://docs.kernel.org/scheduler/sched-bwc.html",
        code="""
for _ in range(4):
    if os.fork() == 0:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            pass
        os._exit(0)
for _ in range(4):
    os.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
spent = used.ru_utime + used.ru_stime
held(round(spent, 2), "s of CPU in 1 s") if spent < 1.5 else broken(
    round(spent, 2), "s of CPU in 1 s"
)
""",
        then=_ALIVE,
    ),
)
