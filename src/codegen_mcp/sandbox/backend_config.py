"""What every backend is given when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.cgroup import CgroupDriver


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """Facts of the worker; the last four serve the self-test."""

    guest_directory: Path
    """The guest's program, readable for every session's user."""
    state: Path
    """The worker's state directory: session users may pass through it."""
    interpreter: Interpreter
    """Runs the self-test."""
    identity: HostIdentity | None = None
    """A host user that no session has, for the self-test; None where the worker is not root."""
    cgroups: CgroupDriver | None = None
    allow_bare: bool = False
    """The operator accepts a backend that confines nothing."""
