"""Sandbox: the same as AsyncSandbox for code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import IO, Any, Literal, NoReturn, TypeVar, overload

from codegen_mcp.client.async_sandbox import AsyncSandbox
from codegen_mcp.client.results import CommandResult, EntryInfo, Package, SandboxInfo, WriteInfo
from codegen_mcp.client.task_runner import OutputHandler

T = TypeVar("T")


class _Loop:
    """One event loop in a daemon thread, shared by all sandboxes of the process."""

    _lock = threading.Lock()
    _loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def run(cls, work: Coroutine[Any, Any, T]) -> T:
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=cls._loop.run_forever, name="codegen-mcp-client", daemon=True
                ).start()
        future = asyncio.run_coroutine_threadsafe(work, cls._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class SyncFiles:
    """Files of a session; see ``client.files.Files``."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._files = sandbox.files

    @overload
    def read(self, path: str, format: Literal["text"] = ...) -> str: ...
    @overload
    def read(self, path: str, format: Literal["bytes"]) -> bytes: ...
    @overload
    def read(self, path: str, format: Literal["stream"]) -> Iterator[bytes]: ...
    def read(
        self, path: str, format: Literal["text", "bytes", "stream"] = "text"
    ) -> str | bytes | Iterator[bytes]:
        """Read a file."""
        if format == "text":
            return _Loop.run(self._files.read(path))
        if format == "bytes":
            return _Loop.run(self._files.read(path, "bytes"))
        return self._stream(path)

    def _stream(self, path: str) -> Iterator[bytes]:
        chunks = _Loop.run(self._files.read(path, "stream"))

        async def following() -> bytes | None:
            return await anext(chunks, None)

        while (chunk := _Loop.run(following())) is not None:
            yield chunk

    def write(
        self, path: str, data: str | bytes | IO[bytes], *, mode: int | None = None
    ) -> WriteInfo:
        """Write a whole file, atomically."""
        return _Loop.run(self._files.write(path, data, mode=mode))

    def list(self, path: str = "", *, depth: int | None = 1) -> list[EntryInfo]:
        """List a directory."""
        return _Loop.run(self._files.list(path, depth=depth))

    def exists(self, path: str) -> bool:
        """Whether there is such an entry."""
        return _Loop.run(self._files.exists(path))

    def get_info(self, path: str) -> EntryInfo:
        """Stat one entry."""
        return _Loop.run(self._files.get_info(path))

    def remove(self, path: str) -> None:
        """Remove a file or directory."""
        _Loop.run(self._files.remove(path))

    def rename(self, old_path: str, new_path: str) -> EntryInfo:
        """Move inside the workspace."""
        return _Loop.run(self._files.rename(old_path, new_path))


class SyncCommands:
    """Shell commands of a session; see ``client.commands.Commands``."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._commands = sandbox.commands

    def run(
        self,
        cmd: str,
        *,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
        on_stdout: OutputHandler | None = None,
        on_stderr: OutputHandler | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> CommandResult:
        """Run a command and wait for its end; callbacks come from the SDK's own thread."""
        return _Loop.run(
            self._commands.run(
                cmd,
                cwd=cwd,
                envs=envs,
                stdin=stdin,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                timeout=timeout,
                check=check,
            )
        )


class Sandbox:
    """A session, driven without async; see ``AsyncSandbox`` for what each call does.

    As a context manager it kills the session at the end.
    """

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._sandbox = sandbox
        self.sandbox_id = sandbox.sandbox_id
        self.files = SyncFiles(sandbox)
        self.commands = SyncCommands(sandbox)

    @classmethod
    def create(
        cls,
        *,
        address: str | None = None,
        timeout: float | None = None,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        language: str = "",
        memory_bytes: int = 0,
        cpu_millicores: int = 0,
        disk_bytes: int = 0,
    ) -> Sandbox:
        """Make a session."""
        return cls(
            _Loop.run(
                AsyncSandbox.create(
                    address=address,
                    timeout=timeout,
                    envs=envs,
                    metadata=metadata,
                    language=language,
                    memory_bytes=memory_bytes,
                    cpu_millicores=cpu_millicores,
                    disk_bytes=disk_bytes,
                )
            )
        )

    @classmethod
    def connect(cls, sandbox_id: str, *, address: str | None = None) -> Sandbox:
        """Join a session that exists."""
        return cls(_Loop.run(AsyncSandbox.connect(sandbox_id, address=address)))

    @staticmethod
    def list(*, address: str | None = None) -> Sequence[SandboxInfo]:
        """List the worker's sessions."""
        return _Loop.run(AsyncSandbox.list(address=address))

    def run_python(
        self,
        code: str | None = None,
        *,
        file: str | None = None,
        args: Sequence[str] = (),
        envs: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
        on_stdout: OutputHandler | None = None,
        on_stderr: OutputHandler | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        """Run a Python program in a fresh process."""
        return _Loop.run(
            self._sandbox.run_python(
                code,
                file=file,
                args=args,
                envs=envs,
                stdin=stdin,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                timeout=timeout,
            )
        )

    def run_code(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Reserved; see ``AsyncSandbox.run_code``."""
        _Loop.run(self._sandbox.run_code(*args, **kwargs))
        raise AssertionError("unreachable")

    def install(
        self,
        *packages: str,
        upgrade: bool = False,
        timeout: float | None = None,
        on_progress: OutputHandler | None = None,
    ) -> Sequence[Package]:
        """Install packages, all or none."""
        return _Loop.run(
            self._sandbox.install(
                *packages, upgrade=upgrade, timeout=timeout, on_progress=on_progress
            )
        )

    def get_info(self) -> SandboxInfo:
        """Ask for state and usage."""
        return _Loop.run(self._sandbox.get_info())

    def is_running(self) -> bool:
        """Whether the session still exists."""
        return _Loop.run(self._sandbox.is_running())

    def set_timeout(self, timeout: float) -> None:
        """Set after how many idle seconds it is cleaned up."""
        _Loop.run(self._sandbox.set_timeout(timeout))

    def kill(self) -> bool:
        """End the session at once."""
        return _Loop.run(self._sandbox.kill())

    def close(self) -> None:
        """Close the connection; the session lives on."""
        _Loop.run(self._sandbox.close())

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.kill()
        finally:
            self.close()
