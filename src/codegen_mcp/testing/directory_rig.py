"""What the laws and the machine of directories share: one directory, opened again at will."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from codegen_mcp.coordinator.directory.base import Directory, Owner, RowState, SessionRow

OpenDirectory = Callable[[], AbstractAsyncContextManager[Directory]]
"""Opens the same one each time: the file, the database, or the object in memory."""


class DirectoryRig:
    """A directory under test; ``reopen`` is a restart of its coordinator."""

    def __init__(self, open_directory: OpenDirectory) -> None:
        self._open = open_directory
        self._context: AbstractAsyncContextManager[Directory]
        self.directory: Directory

    async def __aenter__(self) -> Self:
        self._context = self._open()
        self.directory = await self._context.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._context.__aexit__(None, None, None)

    async def reopen(self) -> None:
        """Close it and open it again."""
        await self._context.__aexit__(None, None, None)
        await self.__aenter__()

    async def start(self, worker_id: str = "w", start_id: str = "1") -> Owner:
        """Register a start."""
        incarnation = await self.directory.register(worker_id, start_id)
        return Owner(worker_id=worker_id, incarnation=incarnation)

    async def hold(self, session_id: str, owner: Owner) -> SessionRow:
        """Reserve a live session for an owner that lives."""
        row = new_row(session_id, owner)
        assert await self.directory.reserve(row)
        return row

    async def row(self, session_id: str) -> SessionRow:
        """A row that must be there."""
        found = await self.directory.get(session_id)
        assert found is not None, f"{session_id!r} is gone"
        return found


def new_row(
    session_id: str,
    owner: Owner | None,
    *,
    principal: str = "p",
    state: RowState = RowState.LIVE,
    adhoc: bool = False,
    epoch: int = 1,
) -> SessionRow:
    """Return the row of a session that begins."""
    return SessionRow(
        session_id=session_id,
        principal=principal,
        owner=owner,
        epoch=epoch,
        checkpoint_id="",
        sequence=0,
        state=state,
        auto_restore=True,
        adhoc=adhoc,
        store_id="store",
    )
