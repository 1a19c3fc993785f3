"""A language: which interpreters there are, and how an environment and its packages are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.task import Command, Outcome

if TYPE_CHECKING:
    from codegen_mcp.sandbox.base import HostIdentity

Progress = Callable[[int, str, str], Awaitable[None]]
"""(percent 0..100, stage, message)."""
CaptureRun = Callable[[Command], Awaitable[tuple[Outcome, bytes, bytes]]]
"""Run inside the session's sandbox; returns outcome, stdout, stderr (bounded)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRequest:
    """What to install."""

    packages: Sequence[str]
    upgrade: bool = False
    index_url: str = ""
    """Must be one of the configured ones; empty is the first configured."""
    no_deps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledPackage:
    """One package as it is now in the environment."""

    name: str
    version: str
    location: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallResult:
    """What an install did. exit_code 0: all of it; else nothing, the environment is as before."""

    installed: Sequence[InstalledPackage]
    failed: Sequence[str]
    output: str
    exit_code: int
    outcome: Outcome | None = None
    """The last run in the sandbox, when there was one."""


class Installer(Protocol):
    """Installs packages into one session's environment."""

    async def install(
        self,
        request: InstallRequest,
        *,
        interpreter: Interpreter,
        venv: Path,
        run: CaptureRun,
        progress: Progress,
        env: Mapping[str, str],
        timeout_s: float,
    ) -> InstallResult:
        """Install, atomically.

        Args:
            request: Validated here, before anything runs.
            interpreter: The session's.
            venv: Host path of the session's environment (owned by its identity; hostile).
            run: Runs a command in the session's sandbox (no network there).
            progress: Where stages are told.
            env: The session's variables.
            timeout_s: Wall time for all of it.

        Raises:
            InvalidRequest: A specifier is malformed or is an option, path or URL.
            Forbidden: ``index_url`` is not one of the configured ones.
            StoreUnavailable: The index cannot be reached and the wheelhouse does not suffice.
        """


class Language(Protocol):
    """One language."""

    @property
    def name(self) -> str:
        """``python``."""

    async def discover(self) -> Sequence[Interpreter]:
        """Find and probe interpreters, best first; templates are made here."""

    def make_environment(
        self, interpreter: Interpreter, venv: Path, identity: HostIdentity | None
    ) -> None:
        """Write an empty environment at ``venv`` (under 2 ms; owned by the identity)."""

    @property
    def installer(self) -> Installer:
        """How packages get in."""

    def read_only_mounts(self) -> Mapping[str, Path]:
        """Path inside to host path that every sandbox gets (uv, wheelhouse)."""

    def close(self) -> None:
        """Undo what discovery mounted; idempotent."""
