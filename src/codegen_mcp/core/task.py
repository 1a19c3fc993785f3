"""A run and its end: what is asked of a sandbox, and the one true reason why it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from codegen_mcp.core.limits import RunLimits, Usage


class Stream(StrEnum):
    """The two output streams of a run."""

    STDOUT = "stdout"
    STDERR = "stderr"


class EndedBy(IntEnum):
    """Why a run ended; numbers are those of the wire."""

    EXIT = 1
    SIGNAL = 2
    TIMEOUT = 3
    MEMORY = 4
    PIDS = 5
    DISK = 6
    CPU = 7
    OUTPUT = 8
    CANCELLED = 9
    WORKER_LOST = 10


class TaskStatus(IntEnum):
    """How a finished task is summed up; numbers are those of the wire."""

    UNSPECIFIED = 0
    SUCCESS = 1
    FAILURE = 2
    TIMEOUT = 3
    CANCELLED = 4


@dataclass(frozen=True, slots=True)
class PythonCode:
    """Source text run as ``__main__``, as ``python -c`` would; tracebacks name ``filename``."""

    code: bytes
    filename: str = "<code>"


@dataclass(frozen=True, slots=True)
class PythonFile:
    """A file of the workspace, relative path, run as ``python PATH`` would."""

    path: str


@dataclass(frozen=True, slots=True)
class Argv:
    """A program by argument vector; ``argv[0]`` is looked up on the run's PATH."""

    argv: tuple[str, ...]


Program = PythonCode | PythonFile | Argv


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One run inside a session's sandbox."""

    program: Program
    limits: RunLimits
    args: tuple[str, ...] = ()
    """What follows ``sys.argv[0]``; not used with Argv."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of this run, on top of the session's."""
    stdin: bytes = b""
    """Bytes on standard input, then end of file."""
    stdin_fd: int | None = None
    """A descriptor that the run reads instead, for example of a pipe that is written meanwhile.
    Must be in blocking mode. It stays the caller's, who closes it when the run is over."""
    cwd: str = ""
    """Relative to the workspace; empty is the workspace itself."""

    def __post_init__(self) -> None:
        if self.stdin and self.stdin_fd is not None:
            raise ValueError("a command has stdin or stdin_fd, not both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended, decided from kernel evidence (wait status, cgroup events, quota)."""

    ended_by: EndedBy
    exit_code: int
    """0 to 255; 128 + signal for a run that a signal ended; 124 when we ended it by time."""
    signal: int = 0
    """The signal that ended the main process, 0 if none."""
    limits_hit: tuple[EndedBy, ...] = ()
    """Limits that were met, whether or not they ended the run."""
    remedy: str = ""
    """One sentence that says what to do next; empty when all is well."""
    duration_s: float = 0.0
    peak: Usage = field(default_factory=Usage)
    leftovers: int = 0
    """Processes that the run left behind and that were killed."""
    sandbox_lost: bool = False
    """The sandbox itself ended (its guest died); the session needs a new one."""

    @property
    def status(self) -> TaskStatus:
        """Sum up for the wire."""
        if self.ended_by is EndedBy.TIMEOUT:
            return TaskStatus.TIMEOUT
        if self.ended_by is EndedBy.CANCELLED:
            return TaskStatus.CANCELLED
        ok = self.ended_by is EndedBy.EXIT and self.exit_code == 0
        return TaskStatus.SUCCESS if ok else TaskStatus.FAILURE
