"""The process backend: no namespaces, for hosts that grant none.

Hardened, it has Landlock (files, TCP, abstract sockets, signals), seccomp without internet
sockets or System V IPC, no_new_privs and rlimits; the self-test's attacks name what remains open.
A uid for each session (a root worker gives one) closes much of that. Bare, it confines nothing but
the user: a tool for debugging, never chosen by itself.

Without mounts a session sees host paths. They go through a link of ours, which follows when the
slot's directory is renamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import os
import signal
import zipfile
from functools import cache
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox import landlock, seccomp
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import (
    Enforcement,
    IsolationLevel,
    Probe,
    Sandbox,
    SandboxSpec,
)
from codegen_mcp.sandbox.bubblewrap_args import ETC_FROM_HOST
from codegen_mcp.sandbox.guest_protocol import GUEST_ENV, guest_argv
from codegen_mcp.sandbox.guest_sandbox import GuestSandbox
from codegen_mcp.sandbox.host_processes import kill_matching, runs_as
from codegen_mcp.sandbox.launch_arguments import Arguments
from codegen_mcp.sandbox.launched import LaunchedGuest, launch, or_end
from codegen_mcp.sandbox.launcher import PLAIN_ENVIRONMENT, Spawner
from codegen_mcp.sandbox.preconditions import check_directories, check_identity
from codegen_mcp.sandbox.probe import enforcement, self_test
from codegen_mcp.sandbox.run_environment import base_environment
from codegen_mcp.sandbox.selftest.works import WORKS

_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32")
_PUBLIC = (
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/loadavg",
    "/proc/version",
    "/proc/filesystems",
    "/sys/devices/system/cpu",
)
_MARGIN = 256
"""For sessions that share the worker's user: RLIMIT_NPROC counts them all, and the worker."""
_PLACES = ("workspace", "venv", "tmp")
"""Below the volume's root; the last is made here, as TMPDIR."""


class ProcessGuest(LaunchedGuest):
    """Ends through its supervisor, which kills every descendant before it goes."""

    environment = PLAIN_ENVIRONMENT
    """Without a mark: nobody else may kill the supervisor before it is done."""

    def kill(self) -> None:
        """Tell the supervisor; where it does not obey, ``wait`` uses the control group."""
        if self._launcher_pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._launcher_pidfd, signal.SIGTERM)

    async def abandon(self) -> None:
        """Kill and wait: a supervisor that has a guest also hears SIGTERM."""
        self.kill()
        await self.wait()

    async def _end_strays(self) -> None:
        """End what a killed supervisor left, and remove the user's shared memory."""
        self._end_group()
        if self._spec.identity is not None:
            await asyncio.to_thread(_clear_user, self._spec.identity.uid)


def _clear_user(uid: int) -> None:
    kill_matching(runs_as({uid}))
    with os.scandir("/dev/shm") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid == uid:
                    os.unlink(entry.path)


class ProcessSandbox(GuestSandbox):
    """Keeps its link pointed at the volume."""

    link: Path

    def moved(self, directory: Path) -> None:
        """Point the link at the new place."""
        point(self.link, self._spec.volume.root)

    async def aclose(self) -> None:
        """End it, and remove the link."""
        await super().aclose()
        self.link.unlink(missing_ok=True)


class ProcessBackend:
    """Boots sandboxes as confined processes of the host.

    Args:
        config: Facts of the worker.
    """

    _hardened = True

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        self._spawner: Spawner | None = None
        self._swept = False

    @property
    def name(self) -> str:
        """``process-hardened`` or ``process-bare``."""
        return self.level.value

    @property
    def level(self) -> IsolationLevel:
        """What it is worth."""
        return IsolationLevel.PROCESS_HARDENED if self._hardened else IsolationLevel.PROCESS_BARE

    async def probe(self) -> Probe:
        """Boot one and try its walls from inside."""
        abi = landlock.abi()
        strong = dict.fromkeys(("memory", "pids"), Enforcement.RLIMIT)
        strong |= dict.fromkeys(("filesystem", "network", "syscalls"), Enforcement.KERNEL)
        if self._config.identity is not None or abi >= landlock.SIGNAL_SCOPE:
            strong["processes"] = Enforcement.KERNEL
        enforces = enforcement(self._config, strong)
        version = f"landlock-{abi}"
        return await self_test(self, self._config, self.level, enforces, version=version)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Boot a sandbox."""
        check_identity(spec.identity)
        check_directories(spec)
        if spec.egress_port:
            raise SandboxUnavailable(
                f"{self.name} has no way out to the network; use bubblewrap for that"
            )
        abi = landlock.abi()
        if self._hardened and abi < 1:
            raise SandboxUnavailable(
                "this kernel has no Landlock; it needs Linux 5.13, and lsm=landlock,... at boot"
            )
        _make_tmp(spec)
        link = self._link(spec)

        def command(out: Arguments, control_fd: int, status_fd: int) -> list[str]:
            archive = out.data(_launcher_archive())
            argv = guest_argv(
                control_fd=control_fd,
                site_packages=spec.interpreter.site_packages,
                python=_python(spec),
                guest=str(self._config.guest_directory),
                workspace=f"{link}/workspace",
                venv=f"{link}/venv",
                init=False,
                own_uid=self._hardened and abi >= landlock.SIGNAL_SCOPE,
                proc=False,
                env=base_environment(
                    spec.interpreter,
                    spec.limits,
                    workspace=f"{link}/workspace",
                    venv=f"{link}/venv",
                    tmp=f"{link}/tmp",
                ),
            )
            settings: dict[str, object] = {
                "worker": os.getpid(),
                "status_fd": status_fd,
                "own_fds": [status_fd, archive],
                "guest_fds": [control_fd],
                "argv": argv,
                "env": dict(GUEST_ENV),
                "landlock": abi if self._hardened else 0,
                "rules": self._rules(spec),
                "processes": 0 if spec.identity else _count_tasks() + spec.limits.pids + _MARGIN,
                "seccomp": seccomp.build(shared_host=True).hex() if self._hardened else "",
            }
            words = out.data(json.dumps(settings).encode())
            return [_python(spec), "-I", "-S", f"/proc/self/fd/{archive}", str(words)]

        if self._spawner is None:
            self._spawner = Spawner()
        try:
            guest = await launch(self._spawner, spec, command, ProcessGuest)
            booting = ProcessSandbox.boot(
                guest,
                spec,
                workspace=f"{link}/workspace",
                venv=f"{link}/venv",
                tmp=f"{link}/tmp",
                counted_alone=spec.identity is not None,
            )
            sandbox = await or_end(booting, guest)
        except BaseException:
            link.unlink(missing_ok=True)
            raise
        assert isinstance(sandbox, ProcessSandbox)
        sandbox.link = link
        return sandbox

    def _link(self, spec: SandboxSpec) -> Path:
        links = self._config.state / "links"
        if not self._swept:
            links.mkdir(mode=0o711, exist_ok=True)
            os.chmod(links, 0o711)
            _remove_dangling(links)
            self._swept = True
        link = links / spec.sandbox_id
        point(link, spec.volume.root)
        return link

    def _rules(self, spec: SandboxSpec) -> list[tuple[str, int]]:
        sources = dict(spec.interpreter.sources)
        run = [*_SYSTEM, *(str(sources.get(tree, tree)) for tree in spec.interpreter.trees)]
        run += [str(tree) for tree in spec.interpreter.trees]
        run += [str(self._config.guest_directory), str(spec.interpreter.template)]
        run += [str(path) for path in spec.read_only.values()]
        read = [*_PUBLIC, *ETC_FROM_HOST, *(str(path) for path in Path("/etc").glob("python3*"))]
        write = [str(spec.volume.root / place) for place in _PLACES]
        return [
            *((path, landlock.RUN) for path in run),
            *((path, landlock.READ) for path in read),
            *((path, landlock.WRITE) for path in write),
            *((path, landlock.DEVICE) for path in _DEVICES),
            ("/dev/shm", landlock.WRITE & ~landlock.EXECUTE),
        ]


class BareProcessBackend(ProcessBackend):
    """Boots processes that nothing confines; the operator must have allowed it."""

    _hardened = False

    def __init__(self, config: BackendConfig) -> None:
        if not config.allow_bare:
            raise SandboxUnavailable(
                "process-bare confines nothing: it is used only with --sandbox process-bare and "
                "--require-isolation process-bare together"
            )
        super().__init__(config)

    async def probe(self) -> Probe:
        """Boot one; there are no walls to try."""
        limited = dict.fromkeys(("memory", "pids"), Enforcement.RLIMIT)
        enforces = enforcement(self._config, limited)
        probe = await self_test(self, self._config, self.level, enforces, attacks=WORKS)
        return dataclasses.replace(probe, reason=probe.reason or "confines nothing but the user")


def point(link: Path, target: Path) -> None:
    """Make or replace a symbolic link, atomically."""
    fresh = link.with_name(f".{link.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)


def _remove_dangling(links: Path) -> None:
    """Remove what a worker that was killed left behind."""
    for link in links.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)


def _count_tasks() -> int:
    """Threads of all processes of this user: what RLIMIT_NPROC counts."""
    own = os.geteuid()
    count = 0
    for pid in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if pid.isdecimal() and os.stat(f"/proc/{pid}").st_uid == own:
                count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def _python(spec: SandboxSpec) -> str:
    return str(spec.interpreter.template / "bin" / "python")


def _make_tmp(spec: SandboxSpec) -> None:
    path = spec.volume.root / "tmp"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        if spec.identity is not None:
            os.chown(path, spec.identity.uid, spec.identity.gid)


@cache
def _launcher_archive() -> bytes:
    """The launcher as a zip archive, which python runs from a descriptor."""
    here = Path(__file__).parent
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("__main__.py", (here / "confine.py").read_text())
        files.writestr("landlock.py", (here / "landlock.py").read_text())
    return archive.getvalue()
