"""The bubblewrap recipe as an argument list: which walls, which mounts, in which order.

The list travels through a descriptor (``--args``), so that no host path stands on a command line.
Later mounts cover earlier ones, and ``--remount-ro`` comes last: a read-only /proc closes sysctls
and /proc/PID/mem for writing even where a check of the kernel would let them through.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from codegen_mcp.sandbox import base, seccomp
from codegen_mcp.sandbox.base import SandboxSpec
from codegen_mcp.sandbox.guest_protocol import GUEST_ENV
from codegen_mcp.sandbox.launch_arguments import Arguments

UID = 1000
"""The user inside, whoever it is outside."""
GUEST_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL")
"""What a guest needs that is another user than the code: to become that, and to kill it."""

_PASSWD = (
    "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
    f"user:x:{UID}:{UID}:user:{base.WORKSPACE}:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
)
_GROUP = f"root:x:0:\nuser:x:{UID}:\nnogroup:x:65534:\n"
_HOSTS = "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files\n"
ETC = {
    "passwd": _PASSWD,
    "group": _GROUP,
    "hosts": _HOSTS,
    "nsswitch.conf": _NSSWITCH,
    "resolv.conf": "",
}
ETC_FROM_HOST = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/alternatives",
    "/etc/mime.types",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/crypto-policies",
    "/etc/fonts",
)
"""Public facts that programs of the host's /usr expect."""
_PROC_FILES = ("cpuinfo", "meminfo", "stat", "loadavg", "version", "filesystems")
"""What a sandbox without a private /proc still sees of it."""


def write_recipe(
    out: Arguments,
    spec: SandboxSpec,
    *,
    guest: Path,
    status_fd: int,
    private_proc: bool,
    namespace_fd: int = -1,
) -> None:
    """Append the whole recipe for one sandbox.

    Args:
        out: Where it goes.
        spec: The sandbox.
        guest: Host directory of the guest's program.
        status_fd: Where bubblewrap reports the child's process id.
        private_proc: False leaves /proc out, but for a few harmless files, where the kernel
            refuses to mount one (its own is masked, as in most containers).
        namespace_fd: User namespace of ``two_users.py``; -1 has bubblewrap make one of one user.
    """
    _walls(out, namespace_fd)
    if private_proc and namespace_fd < 0:
        out.add("--disable-userns")  # writes to /proc/sys; elsewhere seccomp alone refuses them
    _system(out)
    _kernel_files(out, spec.limits.tmp_bytes, private_proc=private_proc)
    _session(out, spec, guest)
    for path in ("/dev", "/proc", "/"):
        if path != "/proc" or private_proc:
            out.add("--remount-ro", path)
    out.add("--chdir", base.WORKSPACE if namespace_fd < 0 else "/")
    for name, value in GUEST_ENV.items():
        out.add("--setenv", name, value)
    out.add("--seccomp", out.data(seccomp.build()))
    out.add("--json-status-fd", status_fd)


def _walls(out: Arguments, namespace_fd: int) -> None:
    if namespace_fd < 0:
        out.add("--unshare-user", "--uid", UID, "--gid", UID)
    else:
        out.add("--userns", namespace_fd, "--uid", 0, "--gid", 0)
    out.add("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--unshare-cgroup")
    out.add("--hostname", "sandbox", "--die-with-parent", "--new-session", "--as-pid-1")
    out.add("--cap-drop", "ALL", "--clearenv")
    if namespace_fd >= 0:
        for capability in GUEST_CAPABILITIES:
            out.add("--cap-add", capability)


def _system(out: Arguments) -> None:
    out.add("--ro-bind", "/usr", "/usr")
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        path = Path("/") / name
        if path.is_symlink():
            out.add("--symlink", os.readlink(path), path)
        elif path.is_dir():
            out.add("--ro-bind", path, path)
    out.add("--dir", "/etc")
    for known in (*ETC_FROM_HOST, *_python_settings()):
        if os.path.exists(known):
            _open_parents(out, Path(known))
            out.add("--ro-bind-try", known, known)
    for name, text in ETC.items():
        out.add("--perms", "0444", "--ro-bind-data", out.data(text.encode()), f"/etc/{name}")


def _open_parents(out: Arguments, path: Path) -> None:
    """Make what leads there open to the code; bubblewrap would keep it to the guest's user."""
    for parent in reversed(path.parents[:-1]):
        out.add("--perms", "0755", "--dir", parent)


def _python_settings() -> Sequence[str]:
    """Debian keeps sitecustomize of its interpreters here; without it they differ from outside."""
    return sorted(str(path) for path in Path("/etc").glob("python3*"))


def _kernel_files(out: Arguments, tmp_bytes: int, *, private_proc: bool) -> None:
    if private_proc:
        out.add("--proc", "/proc")
    else:
        out.add("--dir", "/proc")
        for name in _PROC_FILES:
            out.add("--ro-bind-try", f"/proc/{name}", f"/proc/{name}")
    out.add("--dev", "/dev")
    for path in ("/dev/shm", "/tmp"):
        out.add("--perms", "1777", "--size", tmp_bytes, "--tmpfs", path)
    out.add("--dir", "/var", "--symlink", "../tmp", "/var/tmp")
    out.add("--dir", "/run", "--dir", "/run/codegen")


def _session(out: Arguments, spec: SandboxSpec, guest: Path) -> None:
    sources = dict(spec.interpreter.sources)
    for tree in sorted(spec.interpreter.trees):
        _open_parents(out, Path(tree))
        out.add("--ro-bind", sources.get(tree, tree), tree)
    out.add("--ro-bind", guest, base.GUEST)
    out.add("--ro-bind", spec.interpreter.template, base.TEMPLATE)
    for inside, source in sorted(spec.read_only.items()):
        out.add("--ro-bind", source, inside)
    out.add("--bind", spec.volume.root / "workspace", base.WORKSPACE)
    out.add("--bind", spec.volume.root / "venv", base.VENV)
