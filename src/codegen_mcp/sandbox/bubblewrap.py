"""The bubblewrap backend: namespaces, an own root, seccomp, and the guest as PID 1.

Manual: bwrap(1). It is never run as host uid 0: sysctls check the global uid, so a root that
bubblewrap merely maps away can still write /proc/sys. A root worker drops to the session's uid
first; a set-user-ID bubblewrap is refused (CVE-2026-41163).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import stat

from codegen_mcp.core.errors import SandboxUnavailable
from codegen_mcp.sandbox.backend_config import BackendConfig
from codegen_mcp.sandbox.base import (
    Enforcement,
    IsolationLevel,
    Probe,
    Sandbox,
    SandboxSpec,
)
from codegen_mcp.sandbox.bubblewrap_args import UID, write_recipe
from codegen_mcp.sandbox.guest_protocol import guest_argv
from codegen_mcp.sandbox.guest_sandbox import GuestSandbox
from codegen_mcp.sandbox.launch_arguments import Arguments
from codegen_mcp.sandbox.launched import LaunchedGuest, launch, or_end
from codegen_mcp.sandbox.launcher import ENVIRONMENT, Spawner
from codegen_mcp.sandbox.preconditions import check_directories, check_identity
from codegen_mcp.sandbox.probe import enforcement, self_test
from codegen_mcp.sandbox.run_environment import base_environment
from codegen_mcp.sandbox.two_users import make_namespace

SEARCHED = "/usr/bin:/bin:/usr/local/bin"
"""Where the program is looked for, whatever the worker's PATH."""
_NO_PROC = "mount proc"
"""What bubblewrap says where the kernel refuses a new /proc."""


class BubblewrapBackend:
    """Boots sandboxes with bubblewrap.

    Args:
        config: Facts of the worker.
        private_proc: False boots the weaker level ``bubblewrap-noproc``; None takes what the
            probe finds to work, the full one before that.
    """

    def __init__(self, config: BackendConfig, *, private_proc: bool | None = None) -> None:
        self._config = config
        self._private_proc = private_proc
        self._two_users = config.guest_identity is not None
        self._spawner: Spawner | None = None

    carries_egress = True
    """Its sandboxes have a network namespace of their own, with an entrance for the worker."""

    @property
    def name(self) -> str:
        """``bubblewrap``, or ``bubblewrap-noproc`` once that is what it boots."""
        return self.level.value

    @property
    def level(self) -> IsolationLevel:
        """What it is worth."""
        if self._private_proc is False:
            return IsolationLevel.BUBBLEWRAP_NOPROC
        return IsolationLevel.BUBBLEWRAP

    async def probe(self) -> Probe:
        """Boot the full recipe and try its walls from inside; without /proc if that must be."""
        version = await _version()
        if self._two_users:
            probe = await self._self_test(version)
            if probe.available:
                return probe
            self._two_users = False
            single = await self.probe()
            if single.available:
                why = f"guest and code share a user ({probe.reason})"
                reason = f"{single.reason}; {why}" if single.reason else why
                return dataclasses.replace(single, reason=reason)
            return single
        if self._private_proc is not False:
            probe = await self._self_test(version)
            if probe.available or _NO_PROC not in probe.reason or self._private_proc:
                return probe
            self._private_proc = False
            refused, fix = probe.reason, probe.fix
        else:
            refused, fix = "asked for", ""
        probe = await self._self_test(version)
        if not probe.available:
            return probe
        reason = f"no private /proc ({refused}): programs that need /proc/self do not work"
        return dataclasses.replace(probe, reason=reason, fix=fix)

    async def _self_test(self, version: str) -> Probe:
        strong = dict.fromkeys(
            ("filesystem", "network", "processes", "syscalls"), Enforcement.KERNEL
        )
        strong |= dict.fromkeys(("memory", "pids"), Enforcement.RLIMIT)
        enforces = enforcement(self._config, strong)
        return await self_test(self, self._config, self.level, enforces, version=version)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Boot a sandbox."""
        check_identity(spec.identity)
        check_directories(spec)
        program = find_bubblewrap()
        private_proc = self._private_proc is not False
        if self._spawner is None:
            self._spawner = Spawner()
        guest_user = self._config.guest_identity if self._two_users else None
        namespace = -1
        if guest_user is not None and spec.identity is not None:
            namespace = await make_namespace(
                self._spawner, guest=guest_user, session=spec.identity, called=UID
            )

        def command(out: Arguments, control_fd: int, status_fd: int) -> list[str]:
            if namespace >= 0:
                out.fds.append(namespace)  # closed with the others
            write_recipe(
                out,
                spec,
                guest=self._config.guest_directory,
                status_fd=status_fd,
                private_proc=private_proc,
                namespace_fd=namespace,
            )
            return [
                program,
                "--args",
                str(out.as_descriptor()),
                "--",
                *guest_argv(
                    control_fd=control_fd,
                    site_packages=spec.interpreter.site_packages,
                    proc=private_proc,
                    run_as=(UID, UID, 0) if namespace >= 0 else None,
                    egress_port=spec.egress_port,
                    env=base_environment(spec.interpreter, spec.limits),
                ),
            ]

        guest = await launch(
            self._spawner,
            spec,
            command,
            LaunchedGuest,
            identity=guest_user if namespace >= 0 else None,
        )
        return await or_end(GuestSandbox.boot(guest, spec), guest)


async def _version() -> str:
    """What the installed program says of itself; empty when there is none."""
    try:
        process = await asyncio.create_subprocess_exec(
            find_bubblewrap(),
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
    except (OSError, SandboxUnavailable):
        return ""
    said, _ = await process.communicate()
    return said.decode(errors="replace").strip().rpartition(" ")[2]


class NoProcBubblewrapBackend(BubblewrapBackend):
    """Boots sandboxes without a private /proc, whether or not there could be one."""

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config, private_proc=False)


def find_bubblewrap() -> str:
    """Return the program's path.

    Raises:
        SandboxUnavailable: It is missing, or is installed with privileges.
    """
    path = shutil.which("bwrap", path=SEARCHED)
    if path is None:
        raise SandboxUnavailable("bwrap is not installed; try: apt-get install bubblewrap")
    if os.stat(path).st_mode & stat.S_ISUID:
        raise SandboxUnavailable(
            f"{path!r} is set-user-ID root, which is not used; try: chmod u-s {path}"
        )
    if "security.capability" in os.listxattr(path):
        raise SandboxUnavailable(
            f"{path!r} has file capabilities, which are not used; try: setcap -r {path}"
        )
    return path
