"""The gVisor backend: a kernel of its own for each session (runsc), and the guest as its PID 1.

System calls of the code never reach the host's kernel: gVisor's, written in Go and confined by a
seccomp filter of its own, serves them. Manual: https://gvisor.dev/docs/. runsc runs rootless as the
session's user; a worker that is root drops to it first.

Platform: systrap where runsc knows it (since 2023), else ptrace. KVM is not used: it hangs on hosts
that are themselves virtual. What differs from Linux: no pidfds in older versions, ``/proc`` and
``/sys`` are gVisor's, a memory bomb over all processes ends the whole sandbox (its files stay).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import (
    Enforcement,
    IsolationLevel,
    Probe,
    Sandbox,
    SandboxSpec,
)
from codegen_mcp.sandbox.gvisor_bundle import mount_points, write_bundle
from codegen_mcp.sandbox.gvisor_guest import GvisorGuest, GvisorSandbox, group_limits
from codegen_mcp.sandbox.gvisor_rootfs import make_rootfs
from codegen_mcp.sandbox.launch_arguments import Arguments
from codegen_mcp.sandbox.launched import launch, or_end
from codegen_mcp.sandbox.launcher import ENVIRONMENT, Spawner
from codegen_mcp.sandbox.preconditions import check_directories, check_identity
from codegen_mcp.sandbox.probe import enforcement, self_test
from codegen_mcp.sandbox.volumes.threads import to_end

SEARCHED = "/usr/local/bin:/usr/bin:/usr/sbin:/bin"
"""Where runsc is looked for, the operator's own build first."""
PLATFORMS = ("systrap", "ptrace")
"""Best first."""
_ASK_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Runsc:
    """The program that was found."""

    path: str
    version: str
    platform: str


class GvisorBackend:
    """Boots sandboxes with runsc.

    Args:
        config: Facts of the worker.
    """

    name = IsolationLevel.GVISOR.value

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        self._spawner: Spawner | None = None
        self._runsc: Runsc | None = None
        self._parent = config.state / "gvisor"
        self._bundles = self._parent / "bundles"
        self._swept = False
        self._preparing = asyncio.Lock()

    async def probe(self) -> Probe:
        """Boot one and try its walls from inside."""
        version = ""
        with contextlib.suppress(SandboxUnavailable):  # the self-test says it again
            runsc = await self._find()
            version = f"{runsc.version} {runsc.platform}"
        strong = dict.fromkeys(
            ("filesystem", "network", "processes", "syscalls"), Enforcement.KERNEL
        )
        strong["memory"] = Enforcement.RLIMIT
        enforces = {**enforcement(self._config, strong), "pids": Enforcement.RLIMIT}
        return await self_test(self, self._config, IsolationLevel.GVISOR, enforces, version=version)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Boot a sandbox."""
        check_identity(spec.identity)
        check_directories(spec)
        if spec.egress_port:
            raise SandboxUnavailable(
                "gvisor has no way out to the network; use bubblewrap or container for that"
            )
        runsc = await self._find()
        if spec.cgroup is not None:
            spec.cgroup.set_limits(group_limits(spec.limits))
        async with self._preparing:
            rootfs = await to_end(lambda: self._prepare(spec))
        bundle = await to_end(
            lambda: self._make_bundle(spec, rootfs),
            undo=lambda made: shutil.rmtree(made, ignore_errors=True),
        )

        def command(out: Arguments, control_fd: int, status_fd: int) -> list[str]:
            return [
                runsc.path,
                *("--rootless", "--network=none", f"--platform={runsc.platform}"),
                *("--ignore-cgroups", "--overlay2=none"),
                *("--root", str(bundle / "root")),
                *("run", "--bundle", str(bundle), "--pid-file", str(bundle / "pid")),
                bundle.name,
            ]

        def prepare(guest: GvisorGuest) -> None:
            guest.bundle = bundle

        if self._spawner is None:
            self._spawner = Spawner()
        try:
            guest = await launch(self._spawner, spec, command, GvisorGuest, prepare)
            return await or_end(GvisorSandbox.boot(guest, spec, relay=True), guest)
        except BaseException:
            shutil.rmtree(bundle, ignore_errors=True)  # a few small files
            raise

    async def _find(self) -> Runsc:
        if self._runsc is None:
            self._runsc = await find_runsc()
        return self._runsc

    def _prepare(self, spec: SandboxSpec) -> Path:
        """Make what bundles need; one at a time."""
        if not self._swept:
            self._parent.mkdir(mode=0o711, exist_ok=True)
            os.chmod(self._parent, 0o711)
            shutil.rmtree(self._bundles, ignore_errors=True)  # of a worker that was killed
            self._bundles.mkdir(mode=0o711)
            os.chmod(self._bundles, 0o711)
            self._swept = True
        return make_rootfs(self._parent / "roots", mount_points(spec))

    def _make_bundle(self, spec: SandboxSpec, rootfs: Path) -> Path:
        bundle = Path(tempfile.mkdtemp(prefix=f"{spec.sandbox_id[:16]}-", dir=self._bundles))
        write_bundle(bundle, spec, rootfs=rootfs, guest=self._config.guest_directory)
        (bundle / "root").mkdir(mode=0o700)
        if spec.identity is not None:
            for path in (bundle, bundle / "root"):
                os.chown(path, spec.identity.uid, spec.identity.gid)
        return bundle


async def find_runsc() -> Runsc:
    """Return the program, its version and the platform to use.

    Looked for at RUNSC_PATH, else in ``SEARCHED``.

    Raises:
        SandboxUnavailable: It is missing, has privileges, does not start, or knows no platform.
    """
    path = os.environ.get("RUNSC_PATH") or shutil.which("runsc", path=SEARCHED)
    if path is None:
        raise SandboxUnavailable("runsc is not installed; see https://gvisor.dev/docs/user_guide/")
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise SandboxUnavailable(f"RUNSC_PATH {path!r}: {error.strerror}") from error
    if mode & stat.S_ISUID:
        raise SandboxUnavailable(f"{path!r} is set-user-ID, which is not used; chmod u-s {path}")
    version = re.search(r"version\s+(\S+)", await _ask(path, "--version"))
    known = re.search(r"-platform string\n.*", await _ask(path, "flags"))
    for platform in PLATFORMS:
        if known is not None and platform in known[0]:
            return Runsc(path, version[1] if version else "", platform)
    raise SandboxUnavailable(f"{path!r} knows none of the platforms {', '.join(PLATFORMS)}")


async def _ask(*argv: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=ENVIRONMENT,
            cwd="/",
        )
    except OSError as error:
        raise SandboxUnavailable(f"{argv[0]!r} cannot be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise SandboxUnavailable(f"{argv[0]!r} does not answer") from None
    return said.decode(errors="replace")
