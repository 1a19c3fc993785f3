"""How much artifacts may take, and how long they and their links live."""

from __future__ import annotations

from dataclasses import dataclass

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import GIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactConfig:
    """Bounds of artifacts, validated when built."""

    ttl_s: float = 7 * 24 * 3600.0
    """An artifact is deleted so long after it was recorded."""
    link_s: int = 3600
    """How long a link holds; S3 signs for a week at most."""
    max_bytes: int = 4 * GIB
    """Of one artifact; S3 takes at most 5 GiB in one PUT."""
    session_bytes: int = 16 * GIB
    """Of all artifacts of one session, those announced included."""
    total_bytes: int = 64 * GIB
    """Of all artifacts of the store: those of ended sessions are still there."""
    session_count: int = 10_000
    """Artifacts of one session, those announced included."""
    total_count: int = 100_000
    """Artifacts of the store, those announced included: the facts of all are in memory."""
    uploads: int = 10_000
    """Uploads of all sessions that are announced and not recorded."""
    task_files: int = 100
    """Files in ``artifacts/`` that are registered after one task."""
    task_bytes: int = 256 * MIB
    """Bytes of these together."""
    task_s: float = 60.0
    """How long registering them may take."""
    sweep_s: float = 60.0
    """How often what is over is looked for."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise InvalidRequest(f"artifact setting {name} must be positive")
