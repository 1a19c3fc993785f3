"""Checkpoints: of one session (``sandbox.checkpoint()``), and of a worker (``Checkpoint``)."""

from __future__ import annotations

import builtins
from typing import NamedTuple

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.client.blocking import Loop
from codegen_mcp.client.checkpoint_results import (
    CheckpointInfo,
    RestoreInfo,
    checkpoint_info,
    restore_info,
)
from codegen_mcp.client.connection import Connection
from codegen_mcp.client.errors import make_error


class AsyncCheckpoint:
    """The checkpoints of a worker, whether their sessions live or are gone.

    ``address`` is the worker's ``host:port``; else CODEGEN_MCP_ADDRESS, else 127.0.0.1:50052.
    """

    @staticmethod
    async def list(
        sandbox_id: str = "", *, workspace_id: str = "", address: str | None = None
    ) -> builtins.list[CheckpointInfo]:
        """List those of a session, of a workspace, or all; newest first."""
        async with Connection(address) as connection:
            return await list_checkpoints(connection, sandbox_id, workspace_id)

    @staticmethod
    async def get(checkpoint_id: str, *, address: str | None = None) -> CheckpointInfo:
        """Look one up; CheckpointNotFoundException when there is none."""
        async with Connection(address) as connection:
            answer = await connection.call(
                connection.sessions.GetCheckpoint(
                    pb.GetCheckpointRequest(checkpoint_id=checkpoint_id)
                )
            )
            return checkpoint_info(answer.checkpoint.metadata)

    @staticmethod
    async def delete(checkpoint_id: str, *, address: str | None = None) -> None:
        """Delete one; what later ones need of it stays until they go.

        Raises:
            CheckpointNotFoundException: There is none.
        """
        async with Connection(address) as connection:
            await connection.call(
                connection.sessions.DeleteCheckpoint(
                    pb.DeleteCheckpointRequest(checkpoint_id=checkpoint_id)
                )
            )


class Checkpoint:
    """``AsyncCheckpoint`` for code without an event loop."""

    @staticmethod
    def list(
        sandbox_id: str = "", *, workspace_id: str = "", address: str | None = None
    ) -> builtins.list[CheckpointInfo]:
        """List those of a session, of a workspace, or all; newest first."""
        return Loop.run(
            AsyncCheckpoint.list(sandbox_id, workspace_id=workspace_id, address=address)
        )

    @staticmethod
    def get(checkpoint_id: str, *, address: str | None = None) -> CheckpointInfo:
        """Look one up; CheckpointNotFoundException when there is none."""
        return Loop.run(AsyncCheckpoint.get(checkpoint_id, address=address))

    @staticmethod
    def delete(checkpoint_id: str, *, address: str | None = None) -> None:
        """Delete one; CheckpointNotFoundException when there is none."""
        Loop.run(AsyncCheckpoint.delete(checkpoint_id, address=address))


async def list_checkpoints(
    connection: Connection, session_id: str, workspace_id: str = ""
) -> list[CheckpointInfo]:
    """Read every page."""
    found: list[CheckpointInfo] = []
    request = pb.ListCheckpointsRequest(session_id=session_id, workspace_id=workspace_id)
    while True:
        page = await connection.call(connection.sessions.ListCheckpoints(request))
        found.extend(checkpoint_info(item.metadata) for item in page.checkpoints)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


async def restore(connection: Connection, checkpoint_id: str, *, new_session: bool) -> RestoreInfo:
    """Ask for a restore."""
    answer = await connection.call(
        connection.sessions.RestoreSession(
            pb.RestoreRequest(checkpoint_id=checkpoint_id, create_new_session=new_session)
        )
    )
    return restore_info(answer)


class SessionCheckpoints(NamedTuple):
    """Checkpoints and copies of one session."""

    connection: Connection
    session_id: str

    async def save(self, name: str, *, incremental: bool) -> CheckpointInfo:
        """Save."""
        answer = await self.connection.call(
            self.connection.sessions.CheckpointSession(
                pb.CheckpointRequest(
                    session_id=self.session_id, checkpoint_name=name, incremental=incremental
                )
            )
        )
        return checkpoint_info(answer.metadata)

    async def restore(self, checkpoint_id: str) -> RestoreInfo:
        """Restore in place; a checkpoint of another session would replace that one's files."""
        if checkpoint_id.partition(".")[0] != self.session_id:
            raise make_error(
                "INVALID_ARGUMENT",
                f"checkpoint {checkpoint_id[:120]!r} is not one of session {self.session_id!r}; "
                "use Sandbox.restore(checkpoint_id) for a new session with its files",
                reason="OTHER_SESSION",
            )
        return await restore(self.connection, checkpoint_id, new_session=False)

    async def fork(self, count: int) -> list[str]:
        """Copy the session; ids of the copies."""
        if count < 1:
            raise make_error("INVALID_ARGUMENT", f"n={count!r} must be 1 to 64")
        answer = await self.connection.call(
            self.connection.sessions.ForkSession(
                pb.ForkRequest(session_id=self.session_id, count=count)
            )
        )
        return list(answer.session_ids)

    async def end(self, *, force: bool) -> str:
        """Save and end the session; the checkpoint's id."""
        answer = await self.connection.call(
            self.connection.sessions.DestroySession(
                pb.DestroySessionRequest(
                    session_id=self.session_id, save_checkpoint=True, force=force
                )
            )
        )
        return answer.checkpoint_id
