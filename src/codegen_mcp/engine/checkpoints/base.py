"""The engine's face for checkpoints: what servers, the CLI and tests may ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo, Restored


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a verification of one checkpoint found."""

    checkpoint_id: CheckpointId
    ok: bool
    problem: str = ""
    """What is wrong, for people; empty when ok."""
    bytes_read: int = 0


class Checkpoints(Protocol):
    """Saves, restores and branches the sessions of this worker."""

    async def save(
        self,
        session_id: str,
        *,
        name: str = "",
        incremental: bool = False,
        trigger: str = "request",
    ) -> CheckpointInfo:
        """Save; returns when it is durable and was read back against its manifest.

        ``incremental`` without a usable parent gives a full one (``info.parent`` is 0).

        Raises:
            NotFound: No such session. WrongState: It has no sandbox, or one is being taken.
            InvalidRequest: The name. StoreUnavailable: Not stored yet; the local copy is kept and
            uploaded later. LimitExceeded, Full: It does not fit.
        """

    async def restore(
        self,
        checkpoint_id: str,
        *,
        create_new_session: bool,
        session_id: str = "",
        epoch: int = 0,
    ) -> Restored:
        """Restore into a new session, or in place (the session's own id, alive or gone).

        ``session_id`` is the id of the new session; in place it can only be its own. ``epoch`` is
        the ownership under which it is held: 0 is the epoch that it has (alive), the newest of its
        checkpoints (gone), or 1 (new).

        The whole chain is verified before anything is touched. A failed restore changes nothing.

        Raises:
            NotFound: No such checkpoint, or one that its chain needs. Corrupt: Damaged.
            WrongState: In place, and tasks are under way. Full, LimitExceeded: No room.
            AlreadyExists: ``session_id`` is that of another session here. InvalidRequest: Of the
            id. Conflict: There is a newer epoch of it (STALE_EPOCH).
        """

    async def revive(self, session_id: str, *, epoch: int = 0) -> Restored | None:
        """Restore a session that is gone under its id, if it asked for that (``auto_restore``).

        ``epoch`` as for ``restore``. Returns None where there is nothing to restore, or it was not
        asked for.

        Raises: as ``restore``.
        """

    async def fork(
        self, session_id: str, count: int, *, new_ids: Sequence[str] = ()
    ) -> Sequence[str]:
        """Copy a session ``count`` times (1 to 64); the new ids. All or none.

        Raises:
            NotFound, WrongState (tasks are under way), Full, InvalidRequest (count, ids),
            AlreadyExists (an id).
        """

    async def list(self, session_id: str = "") -> Sequence[CheckpointInfo]:
        """Those of a session, alive or gone, newest first; empty is all sessions."""

    async def get(self, checkpoint_id: str) -> CheckpointInfo:
        """NotFound when there is none."""

    async def delete(self, checkpoint_id: str) -> None:
        """Delete; what later ones need of it stays until they go. NotFound when there is none."""

    def verify(self, session_id: str = "") -> AsyncIterator[Verified]:
        """Read every byte of every archive again and compare it with the manifests."""

    async def export(self, checkpoint_id: str, target: Path) -> int:
        """Write one self-contained tar.gz (metadata, manifest, every archive of its chain)."""

    async def import_(self, source: Path) -> CheckpointInfo:
        """Take in what ``export`` wrote, under its own id; everything is verified first.

        Raises:
            Corrupt: Damaged or hostile. AlreadyExists: That checkpoint is here already.
        """

    def last(self, session_id: str) -> str:
        """Id of the newest checkpoint of a session; empty when there is none."""
