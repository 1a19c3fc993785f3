"""The sandbox of one fetch, and the line by which its guest is asked.

With bubblewrap: own user (where the worker is root), own namespaces, no network but a loopback
interface, of the host only /usr, the interpreter and uv, and one directory to write to. Without:
own user and resource limits, which hold a fault back but not an attacker; ``weakness`` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from codegen_mcp.core.errors import Unavailable
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import GIB, MIB
from codegen_mcp.languages.python.packages import PackageConfig
from codegen_mcp.sandbox import launcher, seccomp
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


class FetchSandbox:
    """One guest at work; an async context manager, which leaves no process behind."""

    def __init__(
        self, config: PackageConfig, interpreter: Interpreter, job: Path, authorities: Path | None
    ) -> None:
        """Prepare; ``job`` is the directory it may write to, with ``proxy.sock`` in it."""
        self._config = config
        self._interpreter = interpreter
        self._job = job
        self._authorities = authorities
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        pem = self._authorities.read_bytes() if self._authorities else b""
        with Arguments() as out:
            walled = self._config.bubblewrap is not None
            argv = self._walled(out, pem) if walled else self._bare()
            self._process = await asyncio.create_subprocess_exec(
                *launcher.entry(argv, identity=self._config.fetch_identity, attach_files=()),
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
        out.add("--bind", self._job, _JOB)
        for inside in ("/dev", "/proc", "/"):
            out.add("--remount-ro", inside)
        out.add("--chdir", _JOB, "--seccomp", out.data(seccomp.build()))
        bwrap = str(self._config.bubblewrap)
        return [bwrap, "--args", str(out.as_descriptor()), "--", *self._bare()]


def weakness(config: PackageConfig) -> str:
    """Return what is missing from the fetcher's confinement, empty when all is there."""
    if config.bubblewrap is not None:
        return ""
    if config.fetch_identity is not None:
        return "without bubblewrap the package fetcher is confined by its own user and rlimits only"
    return "without bubblewrap the package fetcher runs as the worker's own user, with rlimits only"
