"""A tool: its spec, and the narrow context through which it may act.

A new tool is one file with a class like ``EchoTool`` and one line in ``registry.py``. It sees
neither the wire nor the engine; the engine implements the Protocols below.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from codegen_mcp.core.limits import RunLimits
from codegen_mcp.core.task import Command, Outcome
from codegen_mcp.languages.base import InstallRequest, InstallResult


class ToolModel(BaseModel):
    """Base of arguments and results: frozen, unknown fields refused, bytes travel as base64."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )


A = TypeVar("A", bound=ToolModel, contravariant=True)
R = TypeVar("R", bound=ToolModel, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What is told about a tool."""

    name: str
    """Dotted seed name: ``fs.read``."""
    title: str
    description: str
    """For a language model that has no manual."""
    arguments: type[ToolModel]
    result: type[ToolModel]
    runs_code: bool = False
    """True: takes the session's one run slot; False: runs beside it."""
    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False

    @property
    def mcp_name(self) -> str:
        """``fs_read``."""
        return self.name.replace(".", "_")


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answers; ``outcome`` when code ran."""

    value: ToolModel
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """One directory entry, never followed."""

    path: bytes
    """Relative to the workspace, raw bytes."""
    kind: str
    """file, directory, symlink, fifo, socket, device."""
    size: int
    mtime_ns: int
    mode: int
    link_target: bytes = b""
    """Only for a symlink."""

    @property
    def text(self) -> str:
        """The path for people: UTF-8 with what cannot be decoded backslash-escaped."""
        return self.path.decode("utf-8", "backslashreplace")


class Workspace(Protocol):
    """The one way from a caller's path to a file of the session.

    Every path is relative, as text or bytes; openat2(2) RESOLVE_BENEATH holds it inside whatever
    links are swapped meanwhile. Calls are quick (up to 1 MiB inline, above in a thread).

    Raises (all): InvalidRequest, PathEscape, NotFound, WrongState (directory where a file is
    needed, FIFO, not empty, ...), LimitExceeded (volume full, too large).
    """

    async def read(self, path: str | bytes, offset: int, length: int) -> tuple[bytes, int]:
        """Read up to ``length`` bytes from ``offset``; returns (data, size of the file)."""

    async def write(
        self, path: str | bytes, data: bytes, *, create_dirs: bool, mode: int | None
    ) -> tuple[int, str]:
        """Write atomically (temporary file, rename); returns (length, sha256) as on disk."""

    async def sha256(self, path: str | bytes) -> tuple[int, str]:
        """(size, sha256) of a file."""

    async def list(
        self, path: str | bytes, *, recursive: bool, pattern: str, limit: int
    ) -> tuple[Sequence[FileStat], int]:
        """(entries sorted by path bytes and at most ``limit``, total that matched)."""

    async def stat(self, path: str | bytes) -> FileStat:
        """Stat without following a final link."""

    async def delete(self, path: str | bytes, *, recursive: bool) -> int:
        """Remove; returns how many entries went."""

    async def move(self, source: str | bytes, target: str | bytes, *, overwrite: bool) -> None:
        """Rename inside the workspace."""

    async def make_dir(self, path: str | bytes) -> None:
        """Make a directory and its parents."""

    def read_chunks(self, path: str | bytes, chunk_bytes: int) -> AsyncIterator[bytes]:
        """Stream a file (one consistent open file)."""

    async def write_chunks(
        self,
        path: str | bytes,
        chunks: AsyncIterator[bytes],
        *,
        create_dirs: bool,
        mode: int | None,
        expected_size: int | None,
        expected_sha256: str | None,
    ) -> tuple[int, str]:
        """Write a stream atomically; nothing is left of one that fails or does not match."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedOutput:
    """Head and tail of a run's output with exact counts."""

    stdout: bytes
    stderr: bytes
    stdout_bytes: int
    stderr_bytes: int
    stdout_omitted: int
    stderr_omitted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactContent:
    """An artifact, read whole and checked against its sha256."""

    artifact_id: str
    name: str
    content_type: str
    data: bytes


class ToolContext(Protocol):
    """What one call of a tool may use."""

    @property
    def session_id(self) -> str:
        """The session of the call."""

    @property
    def task_id(self) -> str:
        """The task of the call."""

    @property
    def workspace(self) -> Workspace:
        """The session's files."""

    @property
    def env(self) -> Mapping[str, str]:
        """Variables of this task on top of the session's (TaskContext.env_vars)."""

    @property
    def limits(self) -> RunLimits:
        """The session's limits tightened by the task's constraints."""

    async def run(self, command: Command) -> Outcome:
        """Run code in the sandbox; its output goes to the task's live log and ``captured``."""

    def captured(self) -> CapturedOutput:
        """Output so far."""

    async def progress(self, percent: int, stage: str, message: str) -> None:
        """Tell how far the task is; percent 0 to 100."""

    async def install(self, request: InstallRequest) -> InstallResult:
        """Install packages into the session's environment."""

    async def artifact(self, artifact_id: str, max_bytes: int) -> ArtifactContent:
        """Read an artifact of this worker, also of an ended session.

        Raises:
            NotFound: There is none. Corrupt: Its bytes are damaged.
            LimitExceeded: It has more than ``max_bytes``; the message has a link to it.
        """

    def limits_for(self, timeout_s: float | None) -> RunLimits:
        """Return the limits with a timeout that the tool's caller gave.

        Raises:
            InvalidRequest: It is negative, not finite or above the maximum (0, None: default).
        """


class Tool(Protocol, Generic[A, R]):
    """One tool; stateless."""

    @property
    def spec(self) -> ToolSpec:
        """What is told about it."""

    async def run(self, ctx: ToolContext, arguments: A) -> ToolResult:
        """Do the work. Raise ``core.errors`` for bad arguments; a failing program is a result."""
