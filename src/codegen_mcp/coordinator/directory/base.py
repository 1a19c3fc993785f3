"""The directory's port: workers and sessions, with epochs and incarnations.

An epoch of a session has one owner, for ever: it only changes by one conditional statement, and
everything durable is conditional on (owner, epoch). Nobody compares wall clocks: a beat is a
counter, and silence is measured by whoever observes it (``workers.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class RowState(StrEnum):
    """What becomes of a session."""

    CREATING = "creating"
    """Reserved; its worker has not answered yet."""
    LIVE = "live"
    """Held by its owner; without one it was released, and may be taken over by anybody."""
    LOST = "lost"
    """The start that holds it is dead; it may be taken over from a checkpoint."""
    ENDED = "ended"
    """Gone; its checkpoints and artifacts still are its principal's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """One start of one worker."""

    worker_id: str
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session, as the directory has it."""

    session_id: str
    principal: str
    owner: Owner | None
    """None: nobody holds it (released, or ended)."""
    epoch: int
    """1 when made; no other owner ever has the same one."""
    checkpoint_id: str
    """The newest that was committed; empty when there is none."""
    sequence: int
    """The highest of a task whose result was committed."""
    state: RowState
    auto_restore: bool
    adhoc: bool
    """Made by a call that named none: idles out early, is evicted first."""
    store_id: str
    """Of the checkpoints: who can restore them; empty when not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What became durable in a session."""

    session_id: str
    epoch: int
    checkpoint_id: str = ""
    """Empty: as it was."""
    sequence: int = 0
    """0: as it was; else the highest of both stays."""


class Directory(Protocol):
    """One implementation a file; all pass the same conformance suite.

    Every method is one atomic step that is durable when it returns.
    """

    async def register(self, worker_id: str, start_id: str) -> int:
        """Return the incarnation of this start: one more for a start_id that is not the last one.

        A higher incarnation makes those before it dead: their sessions are LOST, stay theirs in
        name and may be taken over by anybody, also by the new one. A start that was declared dead
        gets a new incarnation: the dead never return.
        """

    async def beat(self, owner: Owner) -> bool:
        """Count a sign of life; False when that start is dead or unknown."""

    async def beats(self) -> Mapping[Owner, int]:
        """Every live start, with its counter."""

    async def declare_dead(
        self, owner: Owner, *, at_beat: int | None = None
    ) -> Sequence[SessionRow]:
        """End a start for ever; those of its sessions that are LOST and not taken over yet.

        Idempotent, also for a start that a later one of its worker has replaced.

        Args:
            owner: The start.
            at_beat: Only while its counter still is this one.

        Raises:
            Conflict: It has beaten since ``at_beat``, and lives.
        """

    async def reserve(self, row: SessionRow, *, max_sessions: int = 0) -> bool:
        """Insert a new session (CREATING or LIVE, epoch 1); False when the owner is dead.

        The id must be a new one: of an id that was forgotten nobody knows which epochs it had.

        Raises:
            Full: The principal has ``max_sessions`` that are not ENDED (0 is no bound; all adhoc
            ones count as one). Reason QUOTA_EXCEEDED.
            AlreadyExists: There is such a session.
            InvalidRequest: The row is not a new one.
        """

    async def confirm(self, session_id: str, owner: Owner, epoch: int) -> bool:
        """CREATING becomes LIVE; False unless it is held so. Idempotent."""

    async def acquire(
        self, session_id: str, owner: Owner, expected_epoch: int
    ) -> SessionRow | None:
        """Take over a session: epoch + 1, LIVE, and the checkpoint as committed by then.

        Only one that nobody live holds, whose epoch is ``expected_epoch``, and only for a live
        owner; else None. The checkpoint is read in the same step that takes the epoch: what was
        read before may be older than what was acknowledged.
        """

    async def commit(self, owner: Owner, commits: Sequence[Commit]) -> Sequence[bool]:
        """Move pointers; False for each session that is not held under that epoch (fenced)."""

    async def release(self, session_id: str, owner: Owner, epoch: int) -> bool:
        """Give it up after a last commit: nobody holds it; False when fenced.

        Its epoch stays: the next owner takes the next one.
        """

    async def end(self, session_id: str, epoch: int) -> bool:
        """It is gone for good; False when the epoch has moved on, or for none. Idempotent."""

    async def get(self, session_id: str) -> SessionRow | None:
        """One, ended ones too."""

    async def sessions(
        self,
        *,
        principal: str | None = None,
        owner: Owner | None = None,
        live_only: bool = True,
        after: str = "",
        limit: int = 500,
    ) -> Sequence[SessionRow]:
        """By id, without ENDED ones if ``live_only``; ``after``: the last id of the page before."""

    async def forget(self, keep: int) -> int:
        """Delete all but the ``keep`` ENDED rows that ended last; how many went."""
