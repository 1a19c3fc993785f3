"""What a checkpoint is: its manifest's entries, its facts, and how it is named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from codegen_mcp.core.errors import InvalidRequest, NotFound
from codegen_mcp.core.limits import ResourceLimits

FORMAT = 1
"""Of manifest and metadata; newer ones are refused by name, older ones are always read."""
MAX_NAME_CHARACTERS = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,127}")
_ID = re.compile(r"(ses_[0-9a-f]{32})\.([1-9][0-9]{0,9})\.([1-9][0-9]{0,9})")


class EntryKind(StrEnum):
    """Kinds of manifest entries; the letter is what a manifest has. Sockets are never saved."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"
    HARDLINK = "h"
    """Another name of a file: ``target`` is the path of the first one (no hard link itself)."""
    FIFO = "p"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a session's tree.

    Paths are raw bytes without a leading or trailing slash, below one of two roots, ``workspace``
    and ``venv``, which are entries (directories) themselves. A directory precedes what is in it.
    """

    path: bytes
    kind: EntryKind
    mode: int
    """Permission bits, 0 to 0o7777. Of a hard link: those of its target."""
    mtime_ns: int
    """Since the epoch; may be negative."""
    size: int = 0
    """Bytes of a file as read (holes included); 0 for other kinds."""
    sha256: bytes = b""
    """32 bytes for a file, else empty."""
    target: bytes = b""
    """Text of a symbolic link, or path of a hard link's first name."""
    source: int = 0
    """For a file: number of the checkpoint of the same chain whose archive holds the bytes."""
    sparse: bool = False
    """Whether the file has holes worth keeping."""


@dataclass(frozen=True, slots=True)
class CheckpointId:
    """``ses_<32 hex>.<epoch>.<number>``: unguessable by its session's part."""

    session_id: str
    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.session_id}.{self.epoch}.{self.number}"

    @property
    def key(self) -> str:
        """Prefix of its objects in a store: ``{session}/{epoch}/{number}`` with ten digits."""
        return f"{self.session_id}/{self.epoch:010d}/{self.number:010d}"


def parse_checkpoint_id(text: str) -> CheckpointId:
    """Read an id.

    Raises:
        NotFound: It cannot be the id of any checkpoint.
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise NotFound(
            f"there is no checkpoint {text[:120]!r}; list those of a session with ListCheckpoints",
            reason="CHECKPOINT_NOT_FOUND",
        )
    return CheckpointId(match[1], int(match[2]), int(match[3]))


def check_checkpoint_name(name: str) -> str:
    """Accept a name that people give; empty is none.

    Raises:
        InvalidRequest: It is too long or has other characters.
    """
    if name and not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"checkpoint_name {name[:MAX_NAME_CHARACTERS]!r} is not valid; use up to "
            f"{MAX_NAME_CHARACTERS} letters, digits, '.', '_', '-' and spaces, beginning with a "
            "letter or digit"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """Facts of one durable, verified checkpoint (its metadata object)."""

    checkpoint_id: CheckpointId
    name: str = ""
    parent: int = 0
    """Number of the checkpoint that it builds on; 0 is none (a full one)."""
    chain: Sequence[int] = ()
    """Numbers whose archives a restore reads, itself last."""
    workspace_id: str = ""
    user_id: str = ""
    created_at_ms: int = 0
    interpreter: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The session's."""
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    idle_timeout_s: float = 0.0
    durability: str = "interval"
    checkpoint_interval_s: float = -1.0
    """Between saves of the session by itself; 0 is never, negative is not recorded."""
    auto_restore: bool = False
    allow_network: bool = False
    allow_hosts: Sequence[str] = ()
    """The session's allow list."""
    installed_packages: Sequence[str] = ()
    """``name==version``, sorted."""
    modified_files: Sequence[str] = ()
    """Changed or removed since the parent (or creation); at most 1,000 paths of the workspace, as
    text (what is not UTF-8 is escaped)."""
    modified_count: int = 0
    entries: int = 0
    total_bytes: int = 0
    """Of all files of the session then."""
    size_bytes: int = 0
    """Of the archive."""
    inflated_bytes: int = 0
    """Of the archive without its compression."""
    sha256: str = ""
    """Of the archive, hexadecimal."""
    manifest_sha256: str = ""
    """Of the manifest object, hexadecimal."""
    journal_sha256: str = ""
    """Of the journal object; empty when there is none."""
    storage_url: str = ""
    freeze_ms: float = 0.0
    """How long the session's processes stood still; 0 when nothing ran."""
    consistency: str = "frozen"
    """frozen (by the control group), stopped (SIGSTOP sweep, not atomic) or idle (nothing ran)."""
    trigger: str = "request"
    """request, destroy, idle, drain, interval, turn or sync."""
    last_sequence: int = 0
    """Of the session's tasks then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore gave."""

    session_id: str
    info: CheckpointInfo
    lost: str = ""
    """What the session had done since, in words; empty when nothing was lost."""
