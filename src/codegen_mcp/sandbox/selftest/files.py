"""Attacks on the file system's wall."""

from __future__ import annotations

from codegen_mcp.sandbox.base import IsolationLevel
from codegen_mcp.sandbox.selftest.attack import Attack

_SHARED = (IsolationLevel.PROCESS_HARDENED.value,)
_SAME_USER = {"shared-user": "Landlock covers neither chmod nor utime; a uid for each session does"}

FILES = (
    Attack(
        name="read the host's secrets",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man5/shadow.5.html",
        quick=True,
        code="""
# An interpreter below a home (pyenv, uv) is bound at its own path: the empty
# directories above it are the sandbox's own, and show nothing of the host's.
OWN = [sys.base_prefix, *map(os.path.realpath, (sys.base_prefix, sys.executable))]


def foreign(path):
    found = []
    for name in os.listdir(path):
        inner = path + "/" + name
        if inner in OWN and path != "/home":  # what lies there is a whole home, not a tree
            continue
        if any(own.startswith(inner + "/") for own in OWN):
            found += foreign(inner)
        else:
            found.append(inner)
    return found


refused(
    shadow=lambda: opened("/etc/shadow"),
    root=lambda: foreign("/root") or opened("/none"),
    up=lambda: opened(os.getcwd() + "/../../../../../../../etc/shadow"),
    home=lambda: foreign("/home") or opened("/none"),
)
""",
    ),
    Attack(
        name="read a world-readable file of the host by its path",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man7/path_resolution.7.html",
        quick=True,
        code="""refused(read=lambda: open(HOST["readable"]).read())""",
    ),
    Attack(
        name="write to the system directories",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man2/open.2.html",
        quick=True,
        code="""
def create(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.unlink(path)
    return path


refused(
    **{
        "at" + d.replace("/", "_"): (lambda d=d: create(d + "/planted"))
        for d in (
            "/usr/bin",
            "",
            "/etc",
            "/dev",
            "/var",
            "/run",
            "/run/codegen",
            HOST["guest"],
            HOST["template"],
            HOST["template"] + "/bin",
        )
    }
)
""",
    ),
    Attack(
        name="mount, remount, unmount, chroot and pivot_root",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man2/mount.2.html",
        quick=True,
        code="""
none = ctypes.c_void_p(0)
refused(
    mount=lambda: call("mount", text("n"), text("/tmp"), text("tmpfs"), 0, none),
    remount=lambda: call("mount", text("n"), text("/usr"), none, 32 | 4096, none),
    umount=lambda: call("umount2", text(os.getcwd()), 2),
    chroot=lambda: call("chroot", text(".")),
    pivot=lambda: call("pivot_root", text("."), text(".")),
)
""",
    ),
    Attack(
        name="mount through the newer calls",
        wall="filesystem",
        source="CVE-2022-0185 https://nvd.nist.gov/vuln/detail/CVE-2022-0185",
        code="""
refused(
    fsopen=lambda: call("fsopen", text("ext4"), 0),
    fuse=lambda: call("fsopen", text("fuse"), 0),
    open_tree=lambda: call("open_tree", -100, text("/"), 1),
    setattr=lambda: call("mount_setattr", -100, text("/"), 0, ctypes.create_string_buffer(32), 32),
    move=lambda: call("move_mount", -100, text("/tmp"), -100, text("/usr"), 0),
    statmount=lambda: call("statmount", 0, 0, 0, 0),
)
""",
    ),
    Attack(
        name="make a block device",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man2/mknod.2.html",
        code="""
refused(
    **{
        n: (lambda m=m, d=d: os.mknod("planted-dev", m | 0o666, d))
        for n, m, d in (
            ("disk", 0o060000, os.makedev(8, 0)),
            ("loop", 0o060000, os.makedev(7, 0)),
            ("mem", 0o020000, os.makedev(1, 1)),
            ("kvm", 0o020000, os.makedev(10, 232)),
        )
    }
)
""",
    ),
    Attack(
        name="find device nodes beyond the harmless ones",
        wall="filesystem",
        source="https://www.kernel.org/doc/html/latest/admin-guide/devices.html",
        code="""
HARMLESS = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
error, names = attempt(lambda: os.listdir("/dev"))
if error:
    held("listing", error)
import stat

bad = [
    n
    for n in names
    if n not in HARMLESS
    and stat.S_ISCHR(os.lstat("/dev/" + n).st_mode)
    or stat.S_ISBLK(os.lstat("/dev/" + n).st_mode)
]
refused(
    extra=lambda: bad and bad or opened("/none"),
    fuse=lambda: opened("/dev/fuse", os.O_RDWR),
    kvm=lambda: opened("/dev/kvm", os.O_RDWR),
    mem=lambda: opened("/dev/mem"),
    kmsg=lambda: opened("/dev/kmsg"),
    tun=lambda: opened("/dev/net/tun", os.O_RDWR),
)
""",
    ),
    Attack(
        name="walk out through /proc/1/root",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man5/proc_pid_root.5.html",
        quick=True,
        code="""
refused(
    **{
        f"{p}_{n}": (lambda p=p, n=n: os.listdir(f"/proc/{p}/{n}/.."))
        for p in (1, GUEST)
        for n in ("root", "cwd")
    }
)
""",
    ),
    Attack(
        name="follow the magic links of every visible process",
        wall="filesystem",
        source="https://lwn.net/Articles/796868/ (magic links)",
        code="""
error, names = attempt(lambda: [n for n in os.listdir("/proc") if n.isdigit()])
if error:
    held("no list of processes:", error)
own = os.stat("/")
for pid in names:
    for link in ("root", "cwd", "exe"):
        error, at = attempt(lambda: os.stat(f"/proc/{pid}/{link}/"))
        if not error and link == "root" and (at.st_dev, at.st_ino) != (own.st_dev, own.st_ino):
            broken(pid, link, "is another root")
    error, fds = attempt(lambda: os.listdir(f"/proc/{pid}/fd"))
    for fd in fds or ():
        error, path = attempt(lambda: os.readlink(f"/proc/{pid}/fd/{fd}"))
        if path and (HOST["secret"] in path or path.startswith("/root")):
            broken(pid, fd, path)
held(len(names), "processes seen, none with another root")
""",
    ),
    Attack(
        name="open a file by handle (Shocker)",
        wall="filesystem",
        source="CVE-2014-3519 https://github.com/gabrtv/shocker",
        code="""
handle = ctypes.create_string_buffer(struct.pack("Ii8s", 8, 1, struct.pack("q", 2)) + b"\\0" * 64)
refused(
    open=lambda: call("open_by_handle_at", os.open(".", os.O_RDONLY), handle, 0),
    name=lambda: call("name_to_handle_at", -100, text("."), handle, handle, 0),
)
""",
    ),
    Attack(
        name="overwrite the interpreter or the guest (runC /proc/self/exe)",
        wall="filesystem",
        source="CVE-2019-5736 https://nvd.nist.gov/vuln/detail/CVE-2019-5736",
        code="""
python = os.path.realpath(sys.executable)
refused(
    exe=lambda: opened("/proc/self/exe", os.O_RDWR),
    pid1=lambda: opened(f"/proc/{GUEST}/exe", os.O_RDWR),
    python=lambda: opened(python, os.O_RDWR),
    template=lambda: opened(HOST["template"] + "/pyvenv.cfg", os.O_RDWR),
    guest=lambda: opened(HOST["guest"] + "/main.py", os.O_RDWR),
    rename=lambda: os.rename(HOST["guest"] + "/main.py", "main.py"),
    truncate=lambda: os.truncate(HOST["guest"] + "/main.py", 0),
)
""",
    ),
    Attack(
        name="write into a read-only file's page cache (Dirty Pipe)",
        wall="filesystem",
        source="CVE-2022-0847 https://dirtypipe.cm4all.com/",
        code="""
path = HOST["guest"] + "/main.py"
error, fd = attempt(lambda: os.open(path, os.O_RDONLY))
if error:
    held("cannot even be read:", error)
before = os.pread(fd, 64, 0)
r, w = os.pipe()
size = fcntl.fcntl(w, 1032)
for _ in range(size // 4096):
    os.write(w, b"x" * 4096)
for _ in range(size // 4096):
    os.read(r, 4096)
if not hasattr(os, "splice"):
    held("no splice in this Python")
os.splice(fd, w, 1, offset_src=0)
os.write(w, b"#")
after = os.pread(fd, 64, 0)
held("unchanged") if after == before else broken("page cache was changed")
""",
    ),
    Attack(
        name="hard-link or rename files out of the read-only binds",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man2/link.2.html",
        code="""
fd = os.open("/usr/bin/env", os.O_PATH)
refused(
    link=lambda: os.link("/usr/bin/env", "linked"),
    by_fd=lambda: call("linkat", fd, text(""), -100, text("linked"), 0x1000),
    by_proc=lambda: call("linkat", -100, text(f"/proc/self/fd/{fd}"), -100, text("linked"), 0x400),
    rename=lambda: os.rename("/usr/bin/env", "env"),
)
""",
    ),
    Attack(
        name="make a file that the worker cannot delete",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man2/ioctl_iflags.2.html",
        code="""
fd = os.open("immutable", os.O_CREAT | os.O_RDWR)


def flag(bit):
    return fcntl.ioctl(fd, 0x40086602, struct.pack("l", bit))


try:
    refused(immutable=lambda: flag(0x10), append=lambda: flag(0x20))
finally:
    attempt(lambda: os.unlink("immutable"))
""",
    ),
    Attack(
        name="change files of the same user outside of the workspace",
        wall="filesystem",
        source="https://docs.kernel.org/userspace-api/landlock.html (current limitations)",
        gaps=_SAME_USER,
        code="""
path = HOST["owned"]
refused(
    chmod=lambda: os.chmod(path, 0o600),
    utime=lambda: os.utime(path, (1, 1)),
    write=lambda: opened(path, os.O_WRONLY),
)
""",
    ),
    Attack(
        name="learn which files the host has",
        wall="filesystem",
        source="https://docs.kernel.org/userspace-api/landlock.html (current limitations)",
        gaps=dict.fromkeys(_SHARED, "Landlock does not cover stat"),
        code="""
refused(decoy=lambda: os.stat(HOST["readable"]), shadow=lambda: os.stat("/etc/shadow"))
""",
    ),
    Attack(
        name="read a neighbour's files",
        wall="filesystem",
        source="https://cwe.mitre.org/data/definitions/488.html",
        quick=True,
        code="""
refused(
    workspace=lambda: os.listdir(HOST["neighbour"]),
    slots=lambda: os.listdir(HOST["state"]),
    file=lambda: opened(HOST["neighbour"] + "/secret.txt"),
)
""",
    ),
    Attack(
        name="see a neighbour's shared memory files",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man7/shm_overview.7.html",
        gaps=dict.fromkeys(_SHARED, "/dev/shm is the host's"),
        code="""
refused(
    shm=lambda: (
        opened("/dev/shm/" + HOST["marker"])
        if HOST["marker"] in os.listdir("/dev/shm")
        else opened("/dev/shm/" + HOST["marker"])
    ),
    tmp=lambda: opened("/tmp/" + HOST["marker"]),
)
""",
    ),
    Attack(
        name="preload a library into every program",
        wall="filesystem",
        source="https://man7.org/linux/man-pages/man8/ld.so.8.html",
        code="""
refused(
    preload=lambda: open("/etc/ld.so.preload", "w"),
    cache=lambda: open("/etc/ld.so.cache", "r+b"),
    conf=lambda: open("/etc/ld.so.conf.d/x.conf", "w"),
    passwd=lambda: open("/etc/passwd", "a"),
)
""",
    ),
)
