"""AsyncSandbox: one session of a worker, with E2B's names."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from codegen_mcp._proto.codegen.v1 import common_pb2, session_management_pb2, tools_pb2
from codegen_mcp.client.commands import Commands, Python
from codegen_mcp.client.connection import Connection
from codegen_mcp.client.errors import (
    NotImplementedException,
    SandboxNotFoundException,
    make_error,
)
from codegen_mcp.client.files import Files
from codegen_mcp.client.results import CommandResult, Package, SandboxInfo
from codegen_mcp.client.task_runner import OutputHandler, TaskRunner


class AsyncSandbox:
    """A session: files, environment and a sandbox that runs hostile code.

    Made by ``create`` or ``connect``. As an async context manager it kills the session at the
    end. ``files``, ``commands`` and ``run_python`` do the work.
    """

    def __init__(self, connection: Connection, session_id: str) -> None:
        self._connection = connection
        self.sandbox_id = session_id
        runner = TaskRunner(connection, session_id)
        self._runner = runner
        self._python = Python(runner)
        self.files = Files(connection, runner)
        self.commands = Commands(runner)

    @classmethod
    async def create(
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
    ) -> AsyncSandbox:
        """Make a session.

        Args:
            address: Worker, ``host:port``; else CODEGEN_MCP_ADDRESS, else 127.0.0.1:50052.
            timeout: Seconds of idleness after which it is cleaned up; None is the worker's.
            envs: Variables of every run.
            metadata: Strings to find it by.
            language: ``python``, ``python3.12``; empty is the worker's default.
            memory_bytes: Limit; 0 is the worker's default. Likewise the two below.
            cpu_millicores: 1000 is a core.
            disk_bytes: Files and packages together.

        Raises:
            RateLimitException: No room now. UnavailableException: No worker answers.
        """
        connection = Connection(address)
        config = session_management_pb2.SessionConfig(
            env_vars=envs or {},
            language=language,
            limits=common_pb2.ResourceLimits(
                max_memory_bytes=memory_bytes,
                max_cpu_millicores=cpu_millicores,
                max_disk_bytes=disk_bytes,
            ),
        )
        if timeout is not None:
            config.idle_timeout_seconds = int(timeout)
        request = session_management_pb2.CreateSessionRequest(
            config=config, metadata=metadata or {}
        )
        try:
            answer = await connection.call(connection.sessions.CreateSession(request))
        except BaseException:
            await connection.close()
            raise
        return cls(connection, answer.session_id)

    @classmethod
    async def connect(cls, sandbox_id: str, *, address: str | None = None) -> AsyncSandbox:
        """Join a session that exists; raises SandboxNotFoundException when there is none."""
        connection = Connection(address)
        sandbox = cls(connection, sandbox_id)
        try:
            await sandbox.get_info()
        except BaseException:
            await connection.close()
            raise
        return sandbox

    @staticmethod
    async def list(*, address: str | None = None) -> Sequence[SandboxInfo]:
        """List the worker's sessions, oldest first."""
        found: builtins.list[SandboxInfo] = []
        token = ""
        async with Connection(address) as connection:
            while True:
                answer = await connection.call(
                    connection.sessions.ListSessions(
                        session_management_pb2.ListSessionsRequest(page_token=token)
                    )
                )
                found.extend(_info(item) for item in answer.sessions)
                token = answer.next_page_token
                if not token:
                    return found

    async def run_python(
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
        """Run a Python program in a fresh process, as ``python FILE`` would.

        A program that fails is a result: look at ``ok``, ``exit_code``, ``ended_by``, ``stderr``.
        """
        return await self._python.run(
            code,
            file=file,
            args=tuple(args),
            envs=envs,
            stdin=stdin,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            timeout=timeout,
        )

    async def run_code(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Reserved: elsewhere it keeps variables between calls, which sessions do not do yet."""
        raise NotImplementedException(
            "run_code keeps variables between calls, which this version does not; use run_python"
        )

    async def install(
        self,
        *packages: str,
        upgrade: bool = False,
        timeout: float | None = None,
        on_progress: OutputHandler | None = None,
    ) -> Sequence[Package]:
        """Install packages, all or none.

        Returns:
            The packages that were named, as they now are, and the dependencies that are new.

        Raises:
            InvalidArgumentException: A specifier is not valid, or the resolver said no.
        """
        request = tools_pb2.PkgInstallRequest(packages=packages, upgrade=upgrade)
        result = await self._runner.execute(
            tools_pb2.ToolRequest(pkg_install=request), timeout=timeout, on_progress=on_progress
        )
        answer = result.typed_response.pkg_install
        if answer.exit_code != 0 or not result.typed_response.HasField("pkg_install"):
            text = answer.output.strip() or result.metadata.remedy or "the install failed"
            raise make_error("INVALID_ARGUMENT", text, reason="INSTALL_FAILED")
        return [
            Package(name=p.name, version=p.version, location=p.location) for p in answer.installed
        ]

    async def get_info(self) -> SandboxInfo:
        """Ask for state and usage."""
        answer = await self._connection.call(
            self._connection.sessions.GetSessionStatus(
                session_management_pb2.SessionStatusRequest(session_id=self.sandbox_id)
            )
        )
        metadata = await self._connection.call(
            self._connection.sessions.GetSessionMetadata(
                session_management_pb2.GetSessionMetadataRequest(session_id=self.sandbox_id)
            )
        )
        return _info(answer.info, dict(metadata.metadata))

    async def is_running(self) -> bool:
        """Whether the session still exists."""
        try:
            await self.get_info()
        except SandboxNotFoundException:
            return False
        return True

    async def set_timeout(self, timeout: float) -> None:
        """Set after how many idle seconds the session is cleaned up."""
        await self._connection.call(
            self._connection.sessions.SetIdleTimeout(
                session_management_pb2.SetIdleTimeoutRequest(
                    session_id=self.sandbox_id, idle_timeout_seconds=int(timeout)
                )
            )
        )

    async def kill(self) -> bool:
        """End the session at once; False when it was gone already."""
        try:
            await self._connection.call(
                self._connection.sessions.DestroySession(
                    session_management_pb2.DestroySessionRequest(
                        session_id=self.sandbox_id, force=True
                    )
                )
            )
        except SandboxNotFoundException:
            return False
        return True

    async def close(self) -> None:
        """Close the connection; the session lives on."""
        await self._connection.close()

    async def __aenter__(self) -> AsyncSandbox:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self.kill()
        finally:
            await self.close()


def _info(info: common_pb2.SessionInfo, metadata: Mapping[str, str] | None = None) -> SandboxInfo:
    state = common_pb2.SessionState.Name(info.state).removeprefix("SESSION_STATE_").lower()
    return SandboxInfo(
        sandbox_id=info.session_id,
        state=state,
        workspace_id=info.workspace_id,
        created_at_ms=info.created_at_ms,
        last_activity_ms=info.last_activity_ms,
        active_tasks=info.active_tasks,
        memory_bytes=info.usage.memory_bytes,
        cpu_millicores=info.usage.cpu_millicores,
        disk_bytes=info.usage.disk_bytes,
        metadata=metadata or {},
    )
