"""The sandbox interface: what a backend must do, whatever it is built on.

This layer knows nothing of sessions, tasks, tools, languages or the wire. A backend boots one
sandbox per session; the sandbox runs one command at a time. Known backends: bubblewrap, process
(``registry.py``). All pass ``tests/contract/test_sandbox.py``.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import ResourceLimits, Usage
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, Outcome

if TYPE_CHECKING:
    from codegen_mcp.sandbox.cgroup import Cgroup
    from codegen_mcp.sandbox.volumes.base import Volume

WORKSPACE = "/workspace"
"""Where a sandbox sees its workspace; also HOME and the first working directory."""
VENV = "/venv"
"""Where a sandbox sees its environment (writable: bin and site-packages)."""
GUEST = "/run/codegen/guest"
TEMPLATE = "/run/codegen/template"
TOOLS = "/run/codegen/tools"
"""Read-only programs of ours (uv)."""
WHEELS = "/run/codegen/wheels"
"""Read-only wheelhouse shared by all sessions."""


class Enforcement(StrEnum):
    """Who holds a wall up."""

    KERNEL = "kernel"
    RLIMIT = "rlimit"
    WORKER = "worker"
    """Polled or counted by the worker."""
    NONE = "none"


WALLS = (
    "filesystem",
    "network",
    "processes",
    "syscalls",
    "memory",
    "pids",
    "cpu",
    "disk",
    "open_files",
    "file_size",
    "output",
    "wall_time",
)
"""The walls that every probe reports on, in this order."""


class IsolationLevel(StrEnum):
    """Strongest first; ``--require-isolation`` names the least that is accepted."""

    GVISOR = "gvisor"
    CONTAINER = "container"
    BUBBLEWRAP = "bubblewrap"
    BUBBLEWRAP_NOPROC = "bubblewrap-noproc"
    PROCESS_HARDENED = "process-hardened"
    PROCESS_BARE = "process-bare"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a backend found by trying, not by reading version numbers."""

    name: str
    available: bool
    level: IsolationLevel
    version: str = ""
    reason: str = ""
    """Why it is not available, or what is weaker than it should be; empty when all is well."""
    fix: str = ""
    """What to do to get it, or to get more."""
    enforces: Mapping[str, Enforcement] = field(default_factory=dict)
    """Wall name (``WALLS``) to who enforces it."""
    checks: tuple[tuple[str, bool, str], ...] = ()
    """Self-test: (probe, held, what was seen)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostIdentity:
    """The host user that a sandbox runs as; never 0."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """Everything a backend needs to boot one sandbox."""

    sandbox_id: str
    """Unguessable and without meaning; may appear in mount tables."""
    volume: Volume
    """Holds ``workspace/`` and ``venv/``, both owned by the identity."""
    interpreter: Interpreter
    limits: ResourceLimits
    identity: HostIdentity | None
    """None: the worker's own user (only where the worker is not root)."""
    cgroup: Cgroup | None
    """Already made and limited; None where there is no cgroup to be had."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The session's variables; part of every run."""
    read_only: Mapping[str, Path] = field(default_factory=dict)
    """Path inside to host path: further read-only binds (TOOLS, WHEELS)."""
    egress_port: int = 0
    """Port on loopback inside where code is to find the way out, see ``Sandbox.entrance``; 0: no
    way out. Backends that cannot have one refuse it."""
    image: str = ""
    """Of a container; empty is the worker's own choice. Other backends have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeReport:
    """What a freeze came to."""

    frozen: bool
    """Whether nothing inside runs now."""
    how: Literal["cgroup", "stopped", "none"]
    """``cgroup``: all at one moment. ``stopped``: one after the other (SIGSTOP), so that code which
    still ran could see, and write, what lies after the moment another one stopped at. ``none``: it
    could not be had, and nothing is stopped."""
    took_s: float = 0.0
    """From the request until all stood still."""


class Sandbox(Protocol):
    """One running sandbox.

    Laws (contract suite):

    1. ``run`` returns, raises or is cancelled: in each case no process of that command is left.
    2. Output bytes reach the sink exactly, in order within a stream; what was printed before the
       end is always delivered or counted with ``omit``.
    3. Every Outcome names one EndedBy, from kernel evidence.
    """

    @property
    def alive(self) -> bool:
        """Whether the next run can be served without a new sandbox."""

    @property
    def entrance(self) -> socket.socket | None:
        """A bound TCP socket of the sandbox's own network (``spec.egress_port``), not listening.

        Whoever listens on it serves what code inside connects to there. The sandbox's to close;
        None where there is no way out.
        """

    async def run(self, command: Command, sink: OutputSink) -> Outcome:
        """Run one command to its end. One at a time; the caller queues.

        Cancelling the awaiting task kills the run, waits until nothing of it is left, and raises
        CancelledError. ``command.limits`` (time, output, CPU) are enforced here. A sandbox whose
        guest dies during a run returns an Outcome with ``sandbox_lost``.

        Raises:
            SandboxUnavailable: It is closed or was lost before the run began.
        """

    async def set_environment(self, env: Mapping[str, str]) -> None:
        """Replace the session's variables for the runs to come (at the claim of a pooled one)."""

    async def set_limits(self, limits: ResourceLimits) -> None:
        """Rewrite memory, pids and CPU limits (a claimed sandbox gets its session's)."""

    def moved(self, directory: Path) -> None:
        """Note that the slot directory was renamed on the host."""

    async def packages_changed(self) -> None:
        """Drop every warm import: site-packages were changed."""

    def usage(self) -> Usage:
        """Read the kernel's counters now (no disk); cheap enough for a status call."""

    def processes(self) -> list[int]:
        """Host pids that belong to the sandbox, guest and launcher included."""

    async def freeze(self) -> FreezeReport:
        """Stop every process inside, guest included, until ``thaw``; returns when all stand still.

        A run under way goes on afterwards as if nothing had been (where it was by SIGSTOP, calls
        such as epoll_wait may have failed with EINTR, signal(7)). Its deadline keeps counting, and
        one that passes meanwhile ends it after the thaw. Output that was printed is delivered
        meanwhile. No run is to be started while it is frozen. Cancelled: thawed.

        Raises:
            SandboxUnavailable: It is closed or was lost.
            WrongState: It is frozen already.
        """

    async def thaw(self) -> None:
        """Undo ``freeze``; harmless where there was none. Never raises."""

    async def aclose(self) -> None:
        """Kill everything inside (frozen or not) and return when nothing is left.

        Idempotent, never raises.
        """


class SandboxBackend(Protocol):
    """Makes sandboxes of one kind.

    One whose sandboxes can have a way out says so with ``carries_egress = True``.
    """

    @property
    def name(self) -> str:
        """Registry name, for example ``bubblewrap``."""

    async def probe(self) -> Probe:
        """Start the full recipe once and try the walls; under two seconds; never raises."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Boot a sandbox; return when its first run can be served at once.

        Raises:
            SandboxUnavailable: It could not be started; nothing of it is left.
        """
