"""What the audit log is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """Where the audit log lies, and how careful it is."""

    directory: Path
    required: bool = True
    """Refuse calls that cannot be recorded; else they go on, and how many were not is recorded
    as soon as that is possible."""
    contents: bool = False
    """Keep arguments and results too, not only their digests."""
    file_bytes: int = 64 * 1024 * 1024
    """A file of this size is followed by the next."""
    keep_files: int = 0
    """Full files beyond so many are deleted, the oldest first; 0 keeps all."""
    compress: bool = True
    """With gzip, files that are full."""
    sync_s: float = 1.0
    """Longest time until a record is on the disk, which a power cut may take; 0: before the
    call goes on. What a crash of the process alone may take is nothing."""
    head_s: float = 60.0
    """How often the head is logged when it has moved."""

    def __post_init__(self) -> None:
        if self.file_bytes < 4096:
            raise ValueError(f"file_bytes={self.file_bytes!r} must be at least 4096")
        if self.keep_files < 0:
            raise ValueError(f"keep_files={self.keep_files!r} must not be negative")
        if not 0 <= self.sync_s <= 3600:
            raise ValueError(f"sync_s={self.sync_s!r} must be 0 to 3600")
        if self.head_s <= 0:
            raise ValueError(f"head_s={self.head_s!r} must be positive")
