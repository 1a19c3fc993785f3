"""Sandbox: the same as AsyncSandbox for code without an event loop."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Literal, NoReturn, overload

from codegen_mcp.client.async_sandbox import AsyncSandbox
from codegen_mcp.client.blocking import Loop
from codegen_mcp.client.checkpoint_results import CheckpointInfo, Durability, RestoreInfo
from codegen_mcp.client.class_or_instance import ClassOrInstance
from codegen_mcp.client.results import (
    ArtifactInfo,
    CommandResult,
    EntryInfo,
    Package,
    SandboxInfo,
    WriteInfo,
)
from codegen_mcp.client.task_runner import OutputHandler


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
            return Loop.run(self._files.read(path))
        if format == "bytes":
            return Loop.run(self._files.read(path, "bytes"))
        return self._stream(path)

    def _stream(self, path: str) -> Iterator[bytes]:
        chunks = Loop.run(self._files.read(path, "stream"))

        async def following() -> bytes | None:
            return await anext(chunks, None)

        while (chunk := Loop.run(following())) is not None:
            yield chunk

    def write(
        self, path: str, data: str | bytes | IO[bytes], *, mode: int | None = None
    ) -> WriteInfo:
        """Write a whole file, atomically."""
        return Loop.run(self._files.write(path, data, mode=mode))

    def list(self, path: str = "", *, depth: int | None = 1) -> list[EntryInfo]:
        """List a directory."""
        return Loop.run(self._files.list(path, depth=depth))

    def exists(self, path: str) -> bool:
        """Whether there is such an entry."""
        return Loop.run(self._files.exists(path))

    def get_info(self, path: str) -> EntryInfo:
        """Stat one entry."""
        return Loop.run(self._files.get_info(path))

    def remove(self, path: str) -> None:
        """Remove a file or directory."""
        Loop.run(self._files.remove(path))

    def rename(self, old_path: str, new_path: str) -> EntryInfo:
        """Move inside the workspace."""
        return Loop.run(self._files.rename(old_path, new_path))


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
        allow_network: bool = False,
        allow_hosts: Sequence[str] = (),
        secrets: Sequence[str] = (),
        check: bool = True,
    ) -> CommandResult:
        """Run a command and wait for its end; callbacks come from the SDK's own thread."""
        return Loop.run(
            self._commands.run(
                cmd,
                cwd=cwd,
                envs=envs,
                stdin=stdin,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                timeout=timeout,
                allow_network=allow_network,
                allow_hosts=allow_hosts,
                secrets=secrets,
                check=check,
            )
        )


class SyncArtifacts:
    """Artifacts of a session; see ``client.artifacts.Artifacts``."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._artifacts = sandbox.artifacts

    def upload(
        self,
        data: str | bytes | os.PathLike[str] | IO[bytes],
        name: str | None = None,
        *,
        content_type: str = "",
        labels: Mapping[str, str] | None = None,
        task_id: str = "",
    ) -> ArtifactInfo:
        """Store bytes as an artifact."""
        return Loop.run(
            self._artifacts.upload(
                data, name, content_type=content_type, labels=labels, task_id=task_id
            )
        )

    def list(self, *, task_id: str = "") -> list[ArtifactInfo]:
        """List them, newest first."""
        return Loop.run(self._artifacts.list(task_id=task_id))

    def get_info(self, artifact_id: str) -> ArtifactInfo:
        """Look one up."""
        return Loop.run(self._artifacts.get_info(artifact_id))

    def download(self, artifact_id: str) -> bytes:
        """Read one whole."""
        return Loop.run(self._artifacts.download(artifact_id))

    def download_to(self, artifact_id: str, path: str | os.PathLike[str]) -> ArtifactInfo:
        """Write one to a local file."""
        return Loop.run(self._artifacts.download_to(artifact_id, path))

    def delete(self, artifact_id: str) -> bool:
        """Delete one."""
        return Loop.run(self._artifacts.delete(artifact_id))


def _restore_new(
    cls: type[Sandbox],
    checkpoint_id: str,
    *,
    new_session: bool = True,
    address: str | None = None,
) -> Sandbox:
    """Make a session from a checkpoint, or replace one's files; see ``AsyncSandbox.restore``."""
    return cls(
        Loop.run(AsyncSandbox.restore(checkpoint_id, new_session=new_session, address=address))
    )


def _restore_here(self: Sandbox, checkpoint_id: str) -> RestoreInfo:
    """Take the session back to one of its own checkpoints; see ``AsyncSandbox.restore``."""
    return Loop.run(self._sandbox.restore(checkpoint_id))


class Sandbox:
    """A session, driven without async; see ``AsyncSandbox`` for what each call does.

    As a context manager it kills the session at the end.
    """

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self._sandbox = sandbox
        self.sandbox_id = sandbox.sandbox_id
        self.files = SyncFiles(sandbox)
        self.commands = SyncCommands(sandbox)
        self.artifacts = SyncArtifacts(sandbox)

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
        auto_restore: bool = False,
        durability: Durability = "interval",
        checkpoint_interval: float | None = None,
        allow_network: bool = False,
        allow_hosts: Sequence[str] = (),
    ) -> Sandbox:
        """Make a session."""
        return cls(
            Loop.run(
                AsyncSandbox.create(
                    address=address,
                    timeout=timeout,
                    envs=envs,
                    metadata=metadata,
                    language=language,
                    memory_bytes=memory_bytes,
                    cpu_millicores=cpu_millicores,
                    disk_bytes=disk_bytes,
                    auto_restore=auto_restore,
                    durability=durability,
                    checkpoint_interval=checkpoint_interval,
                    allow_network=allow_network,
                    allow_hosts=allow_hosts,
                )
            )
        )

    @classmethod
    def connect(cls, sandbox_id: str, *, address: str | None = None) -> Sandbox:
        """Join a session that exists."""
        return cls(Loop.run(AsyncSandbox.connect(sandbox_id, address=address)))

    @staticmethod
    def list(*, address: str | None = None) -> Sequence[SandboxInfo]:
        """List the worker's sessions."""
        return Loop.run(AsyncSandbox.list(address=address))

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
        allow_network: bool = False,
        allow_hosts: Sequence[str] = (),
        secrets: Sequence[str] = (),
    ) -> CommandResult:
        """Run a Python program in a fresh process."""
        return Loop.run(
            self._sandbox.run_python(
                code,
                file=file,
                args=args,
                envs=envs,
                stdin=stdin,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                timeout=timeout,
                allow_network=allow_network,
                allow_hosts=allow_hosts,
                secrets=secrets,
            )
        )

    def run_code(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Reserved; see ``AsyncSandbox.run_code``."""
        Loop.run(self._sandbox.run_code(*args, **kwargs))
        raise AssertionError("unreachable")

    def install(
        self,
        *packages: str,
        upgrade: bool = False,
        timeout: float | None = None,
        on_progress: OutputHandler | None = None,
    ) -> Sequence[Package]:
        """Install packages, all or none."""
        return Loop.run(
            self._sandbox.install(
                *packages, upgrade=upgrade, timeout=timeout, on_progress=on_progress
            )
        )

    def get_info(self) -> SandboxInfo:
        """Ask for state and usage."""
        return Loop.run(self._sandbox.get_info())

    def is_running(self) -> bool:
        """Whether the session still exists."""
        return Loop.run(self._sandbox.is_running())

    def set_timeout(self, timeout: float) -> None:
        """Set after how many idle seconds it is cleaned up."""
        Loop.run(self._sandbox.set_timeout(timeout))

    restore = ClassOrInstance(_restore_new, _restore_here)

    def checkpoint(self, name: str = "", *, incremental: bool = True) -> CheckpointInfo:
        """Save the session; returns when the checkpoint is durable and was read back."""
        return Loop.run(self._sandbox.checkpoint(name, incremental=incremental))

    def checkpoints(self) -> builtins.list[CheckpointInfo]:
        """List the session's checkpoints, newest first."""
        return Loop.run(self._sandbox.checkpoints())

    def fork(self, n: int = 1) -> builtins.list[Sandbox]:
        """Copy the session ``n`` times (1 to 64), all or none."""
        return [type(self)(copy) for copy in Loop.run(self._sandbox.fork(n))]

    def pause(self, *, force: bool = False) -> str:
        """Save the session, then end it; the checkpoint's id, for ``Sandbox.restore``."""
        return Loop.run(self._sandbox.pause(force=force))

    def kill(self) -> bool:
        """End the session at once."""
        return Loop.run(self._sandbox.kill())

    def close(self) -> None:
        """Close the connection; the session lives on."""
        Loop.run(self._sandbox.close())

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.kill()
        finally:
            self.close()
