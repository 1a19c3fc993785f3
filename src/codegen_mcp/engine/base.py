"""The engine's faces: what servers, the CLI and tests may ask of sessions and tasks.

``session_pool.py`` implements Sessions, ``task_executor.py`` implements Tasks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from codegen_mcp.core.limits import ResourceLimits, Usage
from codegen_mcp.core.network import NetworkDenial
from codegen_mcp.core.session import Durability, SessionConfig, SessionState
from codegen_mcp.core.task import EndedBy, Stream, TaskStatus
from codegen_mcp.tools.base import ToolModel, ToolSpec, Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """A session as it is now."""

    session_id: str
    workspace_id: str
    user_id: str
    workspace_path: str
    state: SessionState
    created_at_ms: int
    last_activity_ms: int
    active_tasks: int
    usage: Usage
    metadata: Mapping[str, str]
    recent_tasks: Sequence[str]
    """Newest first, at most 20."""
    limits: ResourceLimits
    isolation: Mapping[str, str]
    """Wall name to who enforces it; ``sandbox`` is the level."""
    incarnation: int
    """1 when made; one more for each worker that adopted it."""
    language: str
    note: str = ""
    """What last happened to its sandbox (lost, adopted), for people; empty when nothing did."""
    auto_restore: bool = False
    durability: Durability = Durability.INTERVAL
    checkpoint_interval_s: float = 0.0
    """0 where nothing is saved at intervals."""
    restored_from: str = ""
    """Id of the checkpoint that its files came from; empty when they came from none."""
    lost: str = ""
    """What that restore could not bring back, for people; empty when nothing was lost."""
    allow_network: bool = False
    allow_hosts: Sequence[str] = ()
    """Its own allow list; empty where it has the worker's."""
    epoch: int = 1
    """The ownership under which it is held; 1 where no directory gives others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Room on this worker."""

    total: int
    active: int
    sessions: Sequence[SessionView]


class Ownership(Protocol):
    """Under which epochs this worker holds its sessions. A directory of sessions gives them."""

    def held(self) -> Mapping[str, int]:
        """Every session that is not being ended, with its epoch."""

    def check(self, session_id: str, epoch: int) -> None:
        """Refuse what is meant for another owner of a session; one that is not here passes.

        Raises:
            Conflict: It is held under another epoch, or was fenced (STALE_EPOCH).
        """

    async def grant(self, session_id: str, epoch: int) -> None:
        """Hold it under a higher epoch from now on; durable when this returns.

        A lower epoch, and a session that is not here, change nothing.
        """

    async def fence(self, session_id: str, epoch: int) -> None:
        """End it at once without saving it: its processes first; nothing when it is not here.

        Only while it is held under ``epoch`` or a lower one. Nothing brings it back under such a
        one either.
        """


class Sessions(Protocol):
    """Sessions of this worker."""

    @property
    def ownership(self) -> Ownership:
        """Their epochs."""

    @property
    def default_limits(self) -> ResourceLimits:
        """Limits of a session that asks for none; what a partial request is filled up from."""

    async def create(self, config: SessionConfig) -> SessionView:
        """Make one. Its usage is not read yet, and shown as nothing.

        Raises:
            AlreadyExists: Its id was chosen, and is that of another one here.
            Full: MAX_SESSIONS or disk (with retry_after_s). Draining. InvalidRequest.
            SandboxUnavailable: No sandbox could be booted.
        """

    async def fork(
        self, session_id: str, count: int, *, new_ids: Sequence[str] = ()
    ) -> Sequence[SessionView]:
        """Copy one that is at rest ``count`` times (1 to 64); all or none.

        ``new_ids`` are the ids of the copies, as many as there are; empty lets the worker choose.

        A child has the files, limits, env, metadata and timeouts of its parent, and no process and
        no task record of it: sequences begin at 0. New tasks of the parent wait meanwhile.

        Raises:
            NotFound, InvalidRequest (count, ids), AlreadyExists (an id), Draining.
            WrongState: Its tasks are under way (SESSION_BUSY).
            Full: MAX_SESSIONS or disk for all of them (with retry_after_s).
            SandboxUnavailable: No sandbox could be booted.
        """

    async def destroy(self, session_id: str, *, force: bool) -> None:
        """End one: gentle waits for its tasks up to the grace, then cancels; force is at once."""

    def get(self, session_id: str) -> SessionView:
        """NotFound when there is none."""

    def list(self) -> Sequence[SessionView]:
        """All, oldest first."""

    def capacity(self, *, measured: bool = True) -> Capacity:
        """Counts and sessions; without ``measured`` what they use is of an earlier look, or 0."""

    def workspace(self, session_id: str) -> Workspace:
        """The session's files; touching them counts as activity."""

    def metadata(self, session_id: str) -> Mapping[str, str]:
        """Its metadata."""

    async def update_metadata(
        self, session_id: str, metadata: Mapping[str, str], *, replace: bool
    ) -> Mapping[str, str]:
        """Merge or replace; durable when answered; returns the whole."""

    async def set_idle_timeout(self, session_id: str, seconds: float) -> None:
        """Change when it is cleaned up."""


class OnDisconnect(StrEnum):
    """What a caller that vanishes means for its task."""

    CANCEL = "cancel"
    DETACH = "detach"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """A task's own bounds; None is the session's. They can only tighten."""

    timeout_s: float | None = None
    memory_bytes: int | None = None
    output_bytes: int | None = None
    allow_network: bool = False
    """Whether the task may use the network, as far as the allow lists go."""
    allow_hosts: Sequence[str] = ()
    """Its own allow list; empty is the session's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSubmission:
    """One call of one tool."""

    task_id: str
    """Empty: the executor makes one."""
    session_id: str
    tool: str
    arguments: ToolModel | Mapping[str, Any] | str
    """A model of the tool's own type, plain data, or JSON text; validated by the executor."""
    env: Mapping[str, str] = field(default_factory=dict)
    constraints: Constraints = field(default_factory=Constraints)
    sequence: int = 0
    """0: not tracked."""
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    secrets: Sequence[str] = ()
    """Names of the worker's secrets that it uses; it sees placeholders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressEvent:
    """How far the task is."""

    percent: int
    stage: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputEvent:
    """Bytes of one stream as printed; at most 64 KiB."""

    stream: Stream
    offset: int
    data: bytes
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMetadata:
    """Facts of a finished task."""

    start_time_ms: int = 0
    end_time_ms: int = 0
    duration_ms: int = 0
    peak: Usage = field(default_factory=Usage)
    exit_code: int = 0
    ended_by: EndedBy = EndedBy.EXIT
    signal: int = 0
    remedy: str = ""
    limits_hit: Sequence[EndedBy] = ()
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    stdout_omitted: int = 0
    stderr_omitted: int = 0
    network_denied: Sequence[NetworkDenial] = ()
    """Destinations that it asked for and did not get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultEvent:
    """The one good end of a task."""

    status: TaskStatus
    tool: str
    value: ToolModel | None
    """None when the tool was ended (cancelled, worker lost) before it had one."""
    metadata: TaskMetadata
    artifacts: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEvent:
    """The tool could not do its part: ``code`` is a gRPC status name."""

    error: Exception
    """A WorkerError, or anything else (INTERNAL)."""


TaskEvent = ProgressEvent | OutputEvent | ResultEvent | ErrorEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A task as it is now."""

    task_id: str
    session_id: str
    tool: str
    state: str
    """queued, running, finished."""
    status: TaskStatus
    progress: ProgressEvent | None
    elapsed_ms: int
    submitted_at_ms: int
    ended_by: EndedBy | None
    stdout_bytes: int
    stderr_bytes: int


class Tasks(Protocol):
    """Tasks of this worker."""

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """Every tool that can be asked for."""

    async def submit(self, submission: TaskSubmission) -> str:
        """Admit a task and return its id; it then runs whether or not anybody listens.

        A repeated request (same id and sequence) joins the first. What is wrong with the call is
        raised here; what is wrong with the arguments is the stream's ErrorEvent.

        Raises:
            NotFound: No such session. AlreadyExists: id or sequence used with other content.
            OutcomeUnknown: An old sequence without record. UnknownTool. Full: queues.
            WrongState, Draining. InvalidRequest: bad ids or constraints.
        """

    def events(
        self,
        task_id: str,
        session_id: str,
        *,
        stdout_offset: int | None = None,
        stderr_offset: int | None = None,
    ) -> AsyncIterator[TaskEvent]:
        """Everything from the offsets on, then live, then exactly one ResultEvent or ErrorEvent.

        An offset that is None is the first byte that is still held: a repeated request is always
        answered with its result. Bytes from a given offset that are not held any more are refused
        (WrongState, OUTPUT_EXPIRED).

        A reader that is slow holds the code back (window of 4 MiB). Leaving early detaches the
        reader; the task's ``on_disconnect`` then decides, when no other reader is attached.
        """

    async def cancel(self, task_id: str, session_id: str, reason: str) -> tuple[bool, str]:
        """Cancel; returns (whether this call did it, state: queued, running, finished)."""

    def status(self, task_id: str, session_id: str) -> TaskView:
        """NotFound when there is no record (any more)."""

    def list(self, session_id: str) -> Sequence[TaskView]:
        """Newest first."""

    def last_sequence(self, session_id: str) -> int:
        """The highest sequence of the session's tasks; 0 where none was tracked."""
