"""AsyncSandbox: one session of a worker, with E2B's names."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from codegen_mcp._proto.codegen.v1 import common_pb2, session_management_pb2, tools_pb2
from codegen_mcp.client.artifacts import Artifacts
from codegen_mcp.client.checkpoint_results import (
    DURABILITIES,
    CheckpointInfo,
    Durability,
    RestoreInfo,
    durability_name,
)
from codegen_mcp.client.checkpoints import SessionCheckpoints, list_checkpoints
from codegen_mcp.client.checkpoints import restore as restore_checkpoint
from codegen_mcp.client.class_or_instance import ClassOrInstance
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


async def _restore_new(
    cls: type[AsyncSandbox],
    checkpoint_id: str,
    *,
    new_session: bool = True,
    address: str | None = None,
) -> AsyncSandbox:
    """Make a session with the files, packages and settings of a checkpoint.

    Called on an object, ``await sandbox.restore(checkpoint_id)`` takes that session back to one
    of its own checkpoints and returns a RestoreInfo. A restore that fails changes nothing.

    Args:
        cls: Of the new object.
        checkpoint_id: As ``checkpoint`` gave it; its session may be gone.
        new_session: False restores into the checkpoint's own session, which keeps its id; what it
            did since is lost.
        address: Worker, ``host:port``; else CODEGEN_MCP_ADDRESS, else 127.0.0.1:50052.

    Raises:
        CheckpointNotFoundException: There is none. DataLossException: It is damaged.
        StateException: In place, and tasks are under way. RateLimitException: No room now.
    """
    connection = Connection(address)
    try:
        restored = await restore_checkpoint(connection, checkpoint_id, new_session=new_session)
    except BaseException:
        await connection.close()
        raise
    return cls(connection, restored.sandbox_id)


async def _restore_here(self: AsyncSandbox, checkpoint_id: str) -> RestoreInfo:
    """Take the session back to one of its own checkpoints; see ``AsyncSandbox.restore``."""
    return await self._checkpoints.restore(checkpoint_id)


class AsyncSandbox:
    """A session: files, environment and a sandbox that runs hostile code.

    Made by ``create`` or ``connect``. As an async context manager it kills the session at the
    end. ``files``, ``commands``, ``artifacts`` and ``run_python`` do the work.
    """

    def __init__(self, connection: Connection, session_id: str) -> None:
        self._connection = connection
        self.sandbox_id = session_id
        runner = TaskRunner(connection, session_id)
        self._runner = runner
        self._python = Python(runner)
        self._checkpoints = SessionCheckpoints(connection, session_id)
        self.files = Files(connection, runner)
        self.commands = Commands(runner)
        self.artifacts = Artifacts(connection, session_id)

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
        auto_restore: bool = False,
        durability: Durability = "interval",
        checkpoint_interval: float | None = None,
        allow_network: bool = False,
        allow_hosts: Sequence[str] = (),
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
            auto_restore: Restore it from its last checkpoint when its files are lost, instead of
                ending it; ``get_info().lost`` then says what did not come back.
            durability: When it is saved without being asked, see ``Durability``.
            checkpoint_interval: Seconds; None is the worker's.
            allow_network: Give every run the network, as far as the allow lists go.
            allow_hosts: An own allow list, which narrows the worker's: ``example.com``,
                ``*.example.com:8443``.

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
            auto_restore=auto_restore,
            allow_network=allow_network,
            allow_hosts=allow_hosts,
        )
        if durability != "interval":
            config.durability = DURABILITIES[durability]
        if checkpoint_interval is not None:
            config.checkpoint_interval_seconds = int(checkpoint_interval)
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
        allow_network: bool = False,
        allow_hosts: Sequence[str] = (),
        secrets: Sequence[str] = (),
    ) -> CommandResult:
        """Run a Python program in a fresh process, as ``python FILE`` would.

        A program that fails is a result: look at ``ok``, ``exit_code``, ``ended_by``, ``stderr``.

        ``allow_network`` opens the way out as far as the allow lists go, ``allow_hosts`` narrows
        them, ``secrets`` names secrets of the worker that it uses, and sees placeholders of
        (docs/concepts/egress.md).
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
            allow_network=allow_network,
            allow_hosts=allow_hosts,
            secrets=secrets,
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

    restore = ClassOrInstance(_restore_new, _restore_here)

    async def checkpoint(self, name: str = "", *, incremental: bool = True) -> CheckpointInfo:
        """Save the session; returns when the checkpoint is durable and was read back.

        Args:
            name: For people; up to 128 letters, digits, ``.``, ``_``, ``-`` and spaces.
            incremental: Store only what changed since the last one; a full one where there is
                none to build on.

        Raises:
            UnavailableException: The store does not answer. NotEnoughSpaceException: No room.
        """
        return await self._checkpoints.save(name, incremental=incremental)

    async def checkpoints(self) -> builtins.list[CheckpointInfo]:
        """List the session's checkpoints, newest first."""
        return await list_checkpoints(self._connection, self.sandbox_id)

    async def fork(self, n: int = 1) -> builtins.list[AsyncSandbox]:
        """Copy the session ``n`` times (1 to 64), all or none; each copy is to be killed apart.

        Raises:
            StateException: Tasks are under way. RateLimitException: No room for all.
        """
        copies = await self._checkpoints.fork(n)
        address = self._connection.address
        return [type(self)(Connection(address), session_id) for session_id in copies]

    async def pause(self, *, force: bool = False) -> str:
        """Save the session, then end it; the checkpoint's id, for ``AsyncSandbox.restore``.

        It is ended only once its checkpoint is durable; when that fails it lives on.

        Args:
            force: End tasks that are under way with it; what they do after the checkpoint is lost.

        Raises:
            StateException: Tasks are under way, and ``force`` is not set.
        """
        return await self._checkpoints.end(force=force)

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
        return replace(
            _info(answer.info, dict(metadata.metadata)),
            last_checkpoint_id=answer.last_checkpoint_id,
            restored_from=answer.restored_from,
            lost=answer.lost,
            auto_restore=answer.auto_restore,
            durability=durability_name(answer.durability),
        )

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
