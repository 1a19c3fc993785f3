"""The sandbox of one fetch, and the line by which its guest is asked.

With bubblewrap: own user (where the worker is root), own namespaces, no network but a loopback
interface, of the host only /usr, the interpreter and uv, and one directory to write to. Without:
own user and resource limits, which hold a fault back but not an attacker; ``confine`` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from codegen_mcp.core.errors import SandboxUnavailable, Unavailable
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import GIB, MIB
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.sandbox import launcher, seccomp
from codegen_mcp.sandbox.base import VENV
from codegen_mcp.sandbox.launch_arguments import Arguments

Message = dict[str, Any]

_GUEST = Path(__file__).with_name("fetcher_guest.py")
_JOB = "/fetch"
_UV = "/run/uv"
_AUTHORITIES = "/etc/ssl/authorities.pem"
_ANSWER_BYTES = 32 * MIB
_MEMORY = 4 * GIB
_PROCESSES = 512
_OPEN_FILES = 512
_KILL_GRACE_S = 10.0
_TRIAL_S = 10.0


class FetchSandbox:
    """One guest at work; an async context manager, which leaves no process behind."""

    def __init__(
        self,
        config: PackageConfig,
        interpreter: Interpreter,
        job: Path,
        authorities: Path | None,
        *,
        template: Path | None = None,
    ) -> None:
        """Prepare.

        Args:
            config: Its limits and user.
            interpreter: Runs the guest, and is what is resolved for.
            job: The directory it may write to, with ``proxy.sock`` in it.
            authorities: Certificate authorities to trust.
            template: An environment to show where sessions have theirs.
        """
        self._config = config
        self._interpreter = interpreter
        self._job = job
        self._authorities = authorities
        self._template = template
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        identity = self._config.fetch_identity
        if os.geteuid() == 0 and (identity is None or identity.uid == 0):
            raise SandboxUnavailable("a root worker needs fetch_identity, a user of the fetcher's")
        pem = self._authorities.read_bytes() if self._authorities else b""
        with Arguments() as out:
            walled = self._config.bubblewrap is not None
            argv = self._walled(out, pem) if walled else self._bare()
            self._process = await asyncio.create_subprocess_exec(
                *launcher.entry(argv, identity=identity, attach_files=()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=launcher.ENVIRONMENT,
                cwd="/" if walled else self._job,
                pass_fds=out.fds,
                start_new_session=True,
                limit=_ANSWER_BYTES,
            )
        if pem and not walled:
            (self._job / "authorities.pem").write_bytes(pem)
            os.chmod(self._job / "authorities.pem", 0o644)
        try:
            await self._send(self._first_line(pem, walled=walled))
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()

    async def ask(self, request: Message) -> Message:
        """Send a request and return its answer.

        Raises:
            Unavailable: The guest ended or answered nonsense.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        await self._send(request)
        try:
            line = await self._process.stdout.readline()
            answer = json.loads(line)
            if not isinstance(answer, dict):
                raise ValueError("no object")
        except ValueError:
            raise Unavailable(
                f"the package fetcher ended before it answered: {await self._last_words()}"
            ) from None
        return answer

    async def _send(self, message: Message) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # ask() tells
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._process.stdin.drain()

    async def _last_words(self) -> str:
        assert self._process is not None
        assert self._process.stderr is not None
        words = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while data := await self._process.stderr.read(4096):
                    words = (words + data)[-2000:]
        return " ".join(words.decode(errors="replace").split()) or "it said nothing"

    async def _end(self) -> None:
        """Kill it whole: bubblewrap's child is the init of a pid namespace and dies with it."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        waiting = asyncio.ensure_future(process.communicate())
        done, _ = await asyncio.wait({waiting}, timeout=_KILL_GRACE_S)
        if not done:
            waiting.cancel()

    def _first_line(self, pem: bytes, *, walled: bool) -> Message:
        authorities = _AUTHORITIES if walled else str(self._job / "authorities.pem")
        home = _JOB if walled else str(self._job)
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": home,
            "TMPDIR": "/tmp" if walled else home,
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "UV_CACHE_DIR": "/tmp/cache" if walled else str(self._job / "cache"),
            "UV_HTTP_TIMEOUT": "30",
            "UV_HTTP_RETRIES": "1",
        }
        if pem:
            env["SSL_CERT_FILE"] = authorities
        limits = {
            "AS": _MEMORY,
            "CORE": 0,
            "FSIZE": self._config.max_file_bytes,
            "NOFILE": _OPEN_FILES,
        }
        if self._config.fetch_identity is not None:  # else the worker's own processes count too
            limits["NPROC"] = _PROCESSES
        return {
            "uv": _UV if walled else str(self._config.uv),
            "python": str(self._interpreter.executable),
            "ca": authorities if pem else "",
            "env": env,
            "limits": limits,
        }

    def _bare(self) -> list[str]:
        return [str(self._interpreter.executable), "-I", "-S", "-B", "-c", _GUEST.read_text()]

    def _walled(self, out: Arguments, pem: bytes) -> list[str]:
        """Write the recipe; see ``sandbox/bubblewrap_args.py`` for the reasons of each wall."""
        out.add("--unshare-user", "--uid", 1000, "--gid", 1000, "--disable-userns")
        out.add("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net")
        out.add("--unshare-cgroup", "--hostname", "fetcher", "--die-with-parent", "--new-session")
        out.add("--cap-drop", "ALL", "--clearenv", "--ro-bind", "/usr", "/usr")
        for name in ("bin", "sbin", "lib", "lib64", "lib32"):
            path = Path("/") / name
            if path.is_symlink():
                out.add("--symlink", os.readlink(path), path)
            elif path.is_dir():
                out.add("--ro-bind", path, path)
        out.add("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")
        passwd = out.data(b"user:x:1000:1000:user:/fetch:/bin/sh\n")
        out.add("--perms", "0444", "--ro-bind-data", passwd, "/etc/passwd")
        if pem:
            out.add("--perms", "0444", "--ro-bind-data", out.data(pem), _AUTHORITIES)
        out.add("--proc", "/proc", "--dev", "/dev")
        out.add("--perms", "1777", "--size", self._config.cache_bytes, "--tmpfs", "/tmp")
        sources = dict(self._interpreter.sources)
        for tree in sorted(self._interpreter.trees):
            out.add("--ro-bind", sources.get(tree, tree), tree)
        out.add("--ro-bind", self._config.uv, _UV)
        if self._template is not None:
            out.add("--ro-bind", self._template, VENV)
        out.add("--bind", self._job, _JOB)
        for inside in ("/dev", "/proc", "/"):
            out.add("--remount-ro", inside)
        out.add("--chdir", _JOB, "--seccomp", out.data(seccomp.build()))
        bwrap = str(self._config.bubblewrap)
        return [bwrap, "--args", str(out.as_descriptor()), "--", *self._bare()]


async def confine(config: PackageConfig, interpreter: Interpreter) -> tuple[PackageConfig, str]:
    """Try the fetcher's sandbox once; make the staging directory and empty it.

    Returns:
        The settings to go on with, and what is missing from the fetcher's confinement (empty when
        nothing is). Without a sandbox that works, its own user and rlimits remain.
    """
    await asyncio.to_thread(_empty, config.staging)
    refused = "there is no bubblewrap"
    if config.bubblewrap is not None:
        try:
            async with (
                asyncio.timeout(_TRIAL_S),
                open_directory(config) as job,
                FetchSandbox(config, interpreter, job, None) as guest,
            ):
                await guest.ask({"do": "nothing"})
            return config, ""
        except SandboxUnavailable:
            raise
        except (Unavailable, OSError, TimeoutError) as error:
            refused = str(error) or "bubblewrap did not start in time"
    who = "its own user and rlimits" if config.fetch_identity is not None else "rlimits"
    return (
        replace(config, bubblewrap=None),
        f"the package fetcher is confined by {who} only: {refused}",
    )


@asynccontextmanager
async def open_directory(config: PackageConfig) -> AsyncIterator[Path]:
    """Make a directory for one fetch, owned by the fetcher's user; leaving removes it."""
    directory = config.staging / secrets.token_hex(8)
    directory.mkdir(mode=0o700)
    try:
        if (owner := config.fetch_identity) is not None:
            os.chown(directory, owner.uid, owner.gid)
        yield directory
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))


def _empty(staging: Path) -> None:
    """Make the directory of all fetches, without what an earlier worker left in it."""
    staging.mkdir(parents=True, exist_ok=True)
    os.chmod(staging, 0o711)
    for left in staging.iterdir():
        shutil.rmtree(left, ignore_errors=True)
