"""The engine's face for artifacts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactInfo:
    """One recorded artifact."""

    artifact_id: str
    """``art_`` and 32 hexadecimal digits."""
    session_id: str
    task_id: str = ""
    name: str
    """As given: any characters but NUL and line breaks, up to 255 bytes, no directory."""
    content_type: str = "application/octet-stream"
    size_bytes: int
    sha256: str
    """Hexadecimal."""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at_ms: int = 0
    storage_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadTicket:
    """Where and until when an artifact's bytes may be sent."""

    artifact_id: str
    upload_url: str
    expires_at_ms: int


class Artifacts(Protocol):
    """Artifacts of this worker's sessions; they outlive them."""

    async def begin_upload(
        self, *, session_id: str, task_id: str, name: str, content_type: str, size_bytes: int
    ) -> UploadTicket:
        """Make an id and a link for one PUT. NotFound: no such session. InvalidRequest."""

    async def receive(self, artifact_id: str, data: AsyncIterator[bytes]) -> str:
        """Take the bytes of an upload that goes through this worker; their sha256.

        Nothing is kept of one that fails; until it is recorded it may be sent again.

        Raises:
            NotFound: No such upload, or its time is over. AlreadyExists: It was recorded.
            Conflict: It is being sent already. LimitExceeded: More bytes than were announced.
            InvalidRequest: Fewer. Full: The disk has no room.
        """

    async def record(
        self,
        artifact_id: str,
        *,
        task_id: str,
        name: str,
        content_type: str,
        size_bytes: int,
        sha256: str,
        labels: Mapping[str, str],
    ) -> tuple[ArtifactInfo, str]:
        """Check the uploaded bytes and make them an artifact; (facts, download link).

        Idempotent for equal facts.

        Raises:
            NotFound: No such upload. WrongState: Nothing was uploaded yet. Corrupt: Length or
            sha256 differ. AlreadyExists: Recorded before with other facts.
        """

    async def put(
        self,
        *,
        session_id: str,
        task_id: str,
        name: str,
        content_type: str,
        labels: Mapping[str, str],
        size_bytes: int,
        data: AsyncIterator[bytes],
    ) -> ArtifactInfo:
        """Store and record a stream of ours (files that code left in ``artifacts/``).

        Raises:
            LimitExceeded: The session's quota. Full: The disk. InvalidRequest: It has not
            ``size_bytes``. StoreUnavailable.
        """

    async def get(self, artifact_id: str) -> ArtifactInfo:
        """NotFound when there is none."""

    def read(
        self, artifact_id: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Its bytes in pieces of at most 1 MiB."""

    async def list(
        self,
        session_id: str = "",
        *,
        task_id: str = "",
        before: tuple[int, str] | None = None,
        limit: int | None = None,
    ) -> Sequence[ArtifactInfo]:
        """Newest first, by (time, id) downwards.

        Args:
            session_id: Only of this session, alive or gone; empty is all.
            task_id: Only of this task; empty is all.
            before: Only those that come after this (time, id) in the order.
            limit: At most so many; None is all.
        """

    async def delete(self, artifact_id: str) -> bool:
        """Whether there was one."""

    async def download_link(self, info: ArtifactInfo) -> str:
        """A link for GET and HEAD with ranges, for a while; empty where none can be served."""


class Links(Protocol):
    """Makes links to this worker's own HTTP server."""

    def upload_url(self, artifact_id: str, *, size_bytes: int, expires_at_ms: int) -> str:
        """For PUT of exactly so many bytes, until then."""

    def download_url(self, artifact_id: str, *, expires_at_ms: int) -> str:
        """For GET and HEAD, until then."""
