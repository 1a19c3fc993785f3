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
        data: AsyncIterator[bytes],
    ) -> ArtifactInfo:
        """Store and record a stream of ours (files that code left in ``artifacts/``)."""

    async def get(self, artifact_id: str) -> ArtifactInfo:
        """NotFound when there is none."""

    def read(
        self, artifact_id: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Its bytes in pieces of at most 1 MiB."""

    async def list(self, session_id: str) -> Sequence[ArtifactInfo]:
        """Newest first."""

    async def delete(self, artifact_id: str) -> bool:
        """Whether there was one."""

    async def download_link(self, artifact_id: str) -> str:
        """A link for GET with ranges, for a stated time."""
