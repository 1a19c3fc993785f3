"""What the SDK answers with: frozen values, in the units that their names say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

EndedBy = Literal[
    "exit",
    "signal",
    "timeout",
    "memory",
    "pids",
    "disk",
    "cpu",
    "output",
    "cancelled",
    "worker_lost",
    "",
]
"""Why a run ended; the empty string where the worker did not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDenial:
    """A destination that code asked for and did not get."""

    host: str
    port: int
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """How a command or program ended, and what it printed.

    ``stdout`` and ``stderr`` hold head and tail of long output; the ``*_bytes`` count all of it
    and ``*_omitted`` what is missing between the two.
    """

    stdout: str
    stderr: str
    exit_code: int
    ended_by: EndedBy = "exit"
    signal: int = 0
    remedy: str = ""
    limits_hit: tuple[EndedBy, ...] = ()
    duration_ms: int = 0
    peak_memory_bytes: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    stdout_omitted: int = 0
    stderr_omitted: int = 0
    task_id: str = ""
    """Of the worker's log and task history."""
    artifacts: tuple[str, ...] = ()
    """Ids of the files that it left in ``artifacts/``, new or changed."""
    network_denied: tuple[NetworkDenial, ...] = ()
    """Where it wanted to go and was not let."""

    @property
    def ok(self) -> bool:
        """Whether it exited by itself with code 0."""
        return self.ended_by == "exit" and self.exit_code == 0

    @property
    def error(self) -> str:
        """One line for people; empty when all is well."""
        if self.ok:
            return ""
        return self.remedy or f"ended by {self.ended_by} with exit code {self.exit_code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryInfo:
    """One file or directory of the workspace."""

    path: str
    name: str
    type: Literal["file", "dir"]
    size: int
    modified_time_ms: int
    mode: int
    link_target: str = ""
    path_bytes: bytes = b""
    """The exact name where ``path`` had to be escaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteInfo:
    """What is on disk after a write."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An installed package."""

    name: str
    version: str
    location: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactInfo:
    """A file that outlives its session."""

    artifact_id: str
    name: str
    content_type: str
    size: int
    sha256: str
    session_id: str = ""
    task_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """``path`` is where code left it in the workspace."""
    created_at_ms: int = 0
    download_url: str = ""
    """For GET, for about an hour: whoever has it may read. Empty where the worker has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInfo:
    """A session as the worker sees it."""

    sandbox_id: str
    state: str
    workspace_id: str = ""
    created_at_ms: int = 0
    last_activity_ms: int = 0
    active_tasks: int = 0
    memory_bytes: int = 0
    cpu_millicores: int = 0
    disk_bytes: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    last_checkpoint_id: str = ""
    """The newest one; this and what follows come from ``get_info``, lists have none of it."""
    restored_from: str = ""
    """Id of the checkpoint that its files came from; empty when they came from none."""
    lost: str = ""
    """What that restore could not bring back, in words; empty when nothing was lost."""
    auto_restore: bool = False
    durability: str = ""
    """``interval``, ``turn`` or ``sync``."""
